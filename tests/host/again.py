"""The template that paints one face of a picture again, on the demo's models: once, and once for each of several people."""

import copy

from comfyui import ComfyUI
from graphs import nodes_of, on_demo, read
from PIL import Image

NAME = "08_change_only_the_face"


def with_face_of(server: ComfyUI, photo: Image.Image, picture: Image.Image, face: str, seed: int = 1) -> dict:
    """The face of the photo into the picture, in as many steps as the template has."""
    graph = read(f"api/{NAME}.json")
    (steps,) = (graph[node]["inputs"]["steps"] for node in nodes_of(graph, "KSampler"))
    uploads = [server.upload(photo, f"again_{face}.png"), server.upload(picture, "again_picture.png")]
    graph = on_demo(graph, uploads)
    for node in nodes_of(graph, "KSampler"):
        graph[node]["inputs"] |= {"steps": steps, "seed": seed}
    for node in nodes_of(graph, "HyperLoRADetectFaces"):
        graph[node]["inputs"]["face"] = face
    for node in nodes_of(graph, "HyperLoRAApply"):
        graph[node]["inputs"]["mode"] = "guide"
    for node in nodes_of(graph, "HyperLoRATriggerPrompt"):
        graph[node]["inputs"]["prompt"] = "portrait of a person"  # in the demo model's words
    return graph


def one_after_another(first: dict, second: dict) -> dict:
    """Both, the second on the picture that the first gives."""
    (pasted,) = nodes_of(first, "ImageCompositeMasked")
    (save,) = nodes_of(first, "SaveImage")
    both = {name: node for name, node in copy.deepcopy(first).items() if name != save}
    (original,) = {tuple(second[node]["inputs"]["image"]) for node in nodes_of(second, "HyperLoRADetectFaces")}
    for name, node in copy.deepcopy(second).items():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = [pasted, 0] if tuple(value) == original else [f"second_{value[0]}", value[1]]
        both[f"second_{name}"] = node
    return both
