"""A face painted again and nothing else of the picture, for one person and for each of several, on the demo's models."""

import copy

import numpy as np
import pytest
from bad_inputs import assert_sentence
from graphs import nodes_of
from people import photo_of, side_by_side
from PIL import Image
from test_templates import on_demo, read

from hyperlora_core.evaluate.instruments import FACE_MEASURE, MeasuringNetwork
from hyperlora_core.locate import demo_folder, open_encoder

NAME = "08_change_only_the_face"
PEOPLE = 4, 5  # who come into the picture


def one(server, person: int, picture: Image.Image, face: str, seed: int = 1) -> dict:
    """The template on the demo's models, as long as it is used."""
    photo = server.upload(photo_of(person), f"again_{person}.png")
    graph = read(f"api/{NAME}.json")
    (steps,) = (graph[node]["inputs"]["steps"] for node in nodes_of(graph, "KSampler"))
    graph = on_demo(graph, [photo, server.upload(picture, "again_picture.png")])
    for node in nodes_of(graph, "KSampler"):
        graph[node]["inputs"] |= {"steps": steps, "seed": seed}
    for node in nodes_of(graph, "HyperLoRADetectFaces"):
        graph[node]["inputs"]["face"] = face
    for node in nodes_of(graph, "HyperLoRAApply"):
        graph[node]["inputs"]["mode"] = "guide"
    for node in nodes_of(graph, "HyperLoRATriggerPrompt"):
        graph[node]["inputs"]["prompt"] = "portrait of a person"  # in the demo model's words
    return graph


def after(first: dict, second: dict) -> dict:
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


def saved(server, graph: dict) -> np.ndarray:
    """What a run of the graph saves."""
    return server.run(graph).picture(*nodes_of(graph, "SaveImage"))


@pytest.fixture(scope="module")
def strangers():
    """Two people side by side, neither of whom is to stay."""
    return side_by_side(*(photo_of(person, size=128) for person in (2, 3)))


def test_each_person_in_the_picture_becomes_one_of_their_own(server, strangers):
    faces = MeasuringNetwork(demo_folder() / FACE_MEASURE, open_encoder("demo").faces)
    wanted = np.stack([faces.embed(np.asarray(photo_of(person))) for person in PEOPLE])

    def likeness(picture: np.ndarray) -> np.ndarray:
        """[2, 2]: the left and the right face, to each of both."""
        return np.stack([faces.embed(half) @ wanted.T for half in np.split(picture, 2, axis=1)])

    given = np.asarray(strangers)
    left, right = (one(server, person, strangers, side) for person, side in zip(PEOPLE, ("left", "right"), strict=True))
    only_left = saved(server, left)
    assert np.abs(only_left[:, 128:].astype(int) - given[:, 128:]).max() <= 1, "the other one's half has changed"
    both = saved(server, after(left, right))
    assert np.abs(both[:, :128].astype(int) - only_left[:, :128]).max() <= 1
    assert (np.abs(both[:4].astype(int) - given[:4]) <= 1).all(), "around the faces the picture stays"
    before, now = likeness(given), likeness(both)
    for person in (0, 1):
        assert now[person, person] > before[person, person] + 0.1, (before, now)
        assert now[person].argmax() == person, now


def test_a_picture_without_a_face_is_told(server):
    """The template would otherwise hand back the picture as it was."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    graph = one(server, 0, noise, "largest")
    result = server.run(graph)
    assert result.error and not result.outputs.get(*nodes_of(graph, "SaveImage"))
    assert_sentence(result.error, ("No face was found in Picture 1",))
    (find,) = nodes_of(graph, "HyperLoRADetectFaces")
    asked = {
        node: graph[node]
        for node in (find, *(value[0] for value in graph[find]["inputs"].values() if isinstance(value, list)))
    }
    asked[find]["inputs"]["without_face"] = "empty mask"
    asked["90"] = {"class_type": "PreviewAny", "inputs": {"source": [find, 3]}}
    assert server.run(asked).text("90") == "0"
