"""Workflows as users of the authors' pack saved them: graphs in the editor's and in the API's format.

Rebuilt from what is published about them (ids, inputs in their order, settings); the files themselves are not ours. Each node
is given as its kind, its widgets in the editor's order, and where its sockets come from.
"""

import json
from typing import NamedTuple

from places import FIXTURES

NAME = "sdxl_hyper_id_lora_v1_fidelity"
TRIGGER = "fcsks fxhks fhyks, "
PROMPT = TRIGGER + "portrait of a person in a forest"


class Kind(NamedTuple):
    """A node's signature in the days of those workflows."""

    sockets: dict[str, str]  # name -> type
    widgets: list[str]  # names; "" stands for a value that only the editor knows (control after generate, upload)
    outputs: list[str]  # types


class Node(NamedTuple):
    kind: str
    widgets: list
    links: dict[str, str] = {}  # socket -> "node.slot"


HYPER, MODEL, IMAGE, LORA = "HYPER_LORA", "MODEL", "IMAGE", "LORA"
ENCODER = ["image_processor", "image_encoder"]

# the authors' eleven: ids, inputs in their order, outputs
AUTHORS = {
    "HyperLoRAConfig": Kind(
        {},
        [*ENCODER, "resampler.dim", "resampler.dim_head", "resampler.heads", "resampler.depth", "resampler.ff_mult",
         "encoder_types", "face_analyzer", "id_embed_dim", "num_id_tokens", "hyper_dim", "lora_rank", "has_base_lora"],
        ["HYPER_LORA_CONFIG"],
    ),
    "HyperLoRALoader": Kind({"config": "HYPER_LORA_CONFIG"}, ["model", "dtype"], [HYPER]),
    "HyperLoRAFaceAttr": Kind({"hyper_lora": HYPER, "images": IMAGE}, [], ["FACE_ATTR"]),
    "HyperLoRAIDCond": Kind(
        {"hyper_lora": HYPER, "images": IMAGE, "face_attr": "FACE_ATTR"}, ["grayscale", "remove_background"],
        ["ID_COND", IMAGE],
    ),
    "HyperLoRABaseCond": Kind(
        {"hyper_lora": HYPER, "images": IMAGE, "face_attr": "FACE_ATTR"}, ["crop", "crop_scale_LRTB", "safe_crop"],
        ["BASE_COND", IMAGE],
    ),
    "HyperLoRAGenerateIDLoRA": Kind({"hyper_lora": HYPER, "id_cond": "ID_COND"}, [], [LORA]),
    "HyperLoRAGenerateBaseLoRA": Kind({"hyper_lora": HYPER, "base_cond": "BASE_COND"}, [], [LORA]),
    "HyperLoRAApplyLoRA": Kind({"model": MODEL, "lora": LORA}, ["weight"], [MODEL]),
    "HyperLoRASaveLoRA": Kind({"lora": LORA}, ["filename_prefix"], []),
    "HyperLoRAUniLoader": Kind({}, [*ENCODER, "encoder_types", "face_analyzer", "model", "dtype"], [HYPER]),
    "HyperLoRAUniGenerateIDLoRA": Kind(
        {"hyper_lora": HYPER, "images": IMAGE}, ["grayscale", "remove_background"], [LORA]
    ),
}  # fmt: skip

CORE = {
    "CheckpointLoaderSimple": Kind({}, ["ckpt_name"], [MODEL, "CLIP", "VAE"]),
    "CLIPSetLastLayer": Kind({"clip": "CLIP"}, ["stop_at_clip_layer"], ["CLIP"]),
    "CLIPTextEncode": Kind({"clip": "CLIP"}, ["text"], ["CONDITIONING"]),
    "EmptyLatentImage": Kind({}, ["width", "height", "batch_size"], ["LATENT"]),
    "LoadImage": Kind({}, ["image", ""], [IMAGE, "MASK"]),
    "ImageBatch": Kind({"image1": IMAGE, "image2": IMAGE}, [], [IMAGE]),
    "KSampler": Kind(
        {"model": MODEL, "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"},
        ["seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
        ["LATENT"],
    ),
    "VAEDecode": Kind({"samples": "LATENT", "vae": "VAE"}, [], [IMAGE]),
    "SaveImage": Kind({"images": IMAGE}, ["filename_prefix"], []),
    "PreviewImage": Kind({"images": IMAGE}, [], []),
    "ControlNetLoader": Kind({}, ["control_net_name"], ["CONTROL_NET"]),
}

OTHERS = ("InstantIDModelLoader", "InstantIDFaceAnalysis", "ApplyInstantIDAdvanced", "UltralyticsDetectorProvider",
          "FaceDetailer")  # fmt: skip
PACKS = json.loads((FIXTURES / "peer_nodes.json").read_text(encoding="utf-8"))
DEFINED = {kind: definition for pack in PACKS for kind, definition in pack["nodes"].items() if kind in OTHERS}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs_of(definition: dict) -> dict[str, list]:
    """A node's inputs in the editor's order: name -> type and options."""
    groups = definition["input"]
    return {name: spec for group in ("required", "optional") for name, spec in groups.get(group, {}).items()}


def is_widget(spec: list) -> bool:
    return isinstance(spec[0], list) or spec[0] in WIDGETS


def of_another_pack(definition: dict) -> Kind:
    inputs = inputs_of(definition)
    widgets = [name for name, spec in inputs.items() if is_widget(spec)]
    if "seed" in widgets:
        widgets.insert(widgets.index("seed") + 1, "")
    return Kind({name: spec[0] for name, spec in inputs.items() if not is_widget(spec)}, widgets, definition["output"])


# of other packs, which stay missing where they aren't installed; as they are now
STRANGERS = {kind: of_another_pack(definition) for kind, definition in DEFINED.items()}
KINDS = AUTHORS | CORE | STRANGERS

CONFIG = Node(
    "HyperLoRAConfig",
    ["clip_vit_large_14_processor", "clip_vit_large_14", 1024, 64, 12, 4, 4, "clip + arcface", "antelopev2",
     512, 16, 128, 8, False],
)  # fmt: skip
UNI_LOADER = Node(
    "HyperLoRAUniLoader",
    ["clip_vit_large_14_processor", "clip_vit_large_14", "clip + arcface", "antelopev2", NAME, "fp16"],
)


def stranger(kind: str, widgets: dict, links: dict[str, str] | None = None) -> Node:
    """A node of another pack: its own values where none are given."""
    inputs = inputs_of(DEFINED[kind])

    def value(name: str):
        if not name:
            return "randomize"
        first, options = inputs[name][0], inputs[name][1] if len(inputs[name]) > 1 else {}
        return widgets.get(name, options.get("default", first[0] if isinstance(first, list) and first else ""))

    return Node(kind, [value(name) for name in STRANGERS[kind].widgets], links or {})


def picture(
    model: str, cfg: float = 5.0, positive: str = "positive.0", negative: str = "negative.0"
) -> dict[str, Node]:
    """Checkpoint, prompts, sampler, picture: alike in all."""
    return {
        "checkpoint": Node("CheckpointLoaderSimple", ["RealVisXL_V4.0.safetensors"]),
        "clip": Node("CLIPSetLastLayer", [-2], {"clip": "checkpoint.1"}),
        "positive": Node("CLIPTextEncode", [PROMPT], {"clip": "clip.0"}),
        "negative": Node("CLIPTextEncode", ["blurry, watermark"], {"clip": "clip.0"}),
        "size": Node("EmptyLatentImage", [1024, 1024, 1]),
        "sampler": Node(
            "KSampler",
            [7, "randomize", 20, cfg, "dpmpp_2m", "karras", 1.0],
            {"model": model, "positive": positive, "negative": negative, "latent_image": "size.0"},
        ),
        "decode": Node("VAEDecode", [], {"samples": "sampler.0", "vae": "checkpoint.2"}),
        "save": Node("SaveImage", ["HyperLoRA"], {"images": "decode.0"}),
    }


def full_chain(weight: float, model: str = "checkpoint.0") -> dict[str, Node]:
    """Config, loader, faces, condition, LoRA, model: the long way."""
    return {
        "config": CONFIG,
        "hyper": Node("HyperLoRALoader", [NAME, "fp16"], {"config": "config.0"}),
        "photo": Node("LoadImage", ["photo.png", "image"]),
        "faces": Node("HyperLoRAFaceAttr", [], {"hyper_lora": "hyper.0", "images": "photo.0"}),
        "condition": Node(
            "HyperLoRAIDCond", [False, True], {"hyper_lora": "hyper.0", "images": "photo.0", "face_attr": "faces.0"}
        ),
        "crops": Node("PreviewImage", [], {"images": "condition.1"}),
        "lora": Node("HyperLoRAGenerateIDLoRA", [], {"hyper_lora": "hyper.0", "id_cond": "condition.0"}),
        "apply": Node("HyperLoRAApplyLoRA", [weight], {"model": model, "lora": "lora.0"}),
    }


def uni_chain(weight: float, photo: str = "photo", lora: str = "lora") -> dict[str, Node]:
    return {
        photo: Node("LoadImage", [f"{photo}.png", "image"]),
        lora: Node("HyperLoRAUniGenerateIDLoRA", [False, True], {"hyper_lora": "hyper.0", "images": f"{photo}.0"}),
        f"apply_{lora}": Node("HyperLoRAApplyLoRA", [weight], {"model": "checkpoint.0", "lora": f"{lora}.0"}),
    }


def text_to_image() -> dict[str, Node]:
    return full_chain(0.9) | picture("apply.0")


def uni() -> dict[str, Node]:
    return {"hyper": UNI_LOADER} | uni_chain(0.85) | picture("apply_lora.0")


def instantid() -> dict[str, Node]:
    return (
        {"hyper": UNI_LOADER}
        | uni_chain(0.85)
        | {
            "instantid": stranger("InstantIDModelLoader", {"instantid_file": "ip-adapter.bin"}),
            "analysis": stranger("InstantIDFaceAnalysis", {"provider": "CPU"}),
            "control": Node("ControlNetLoader", ["instantid/diffusion_pytorch_model.safetensors"]),
            "applied": stranger(
                "ApplyInstantIDAdvanced",
                {"ip_weight": 0.0, "cn_strength": 0.6},
                {"instantid": "instantid.0", "insightface": "analysis.0", "control_net": "control.0", "image": "photo.0",
                 "model": "apply_lora.0", "positive": "positive.0", "negative": "negative.0"},
            ),
        }
        | picture("applied.0", 3.0, "applied.1", "applied.2")
    )  # fmt: skip


def face_detailer() -> dict[str, Node]:
    """The picture without the person, whose face is then painted with it."""
    return (
        {"hyper": UNI_LOADER}
        | uni_chain(0.85)
        | picture("checkpoint.0")
        | {
            "detector": stranger("UltralyticsDetectorProvider", {"model_name": "bbox/face_yolov8m.pt"}),
            "detailer": stranger(
                "FaceDetailer",
                {"guide_size": 896, "max_size": 896, "seed": 7, "steps": 10, "cfg": 5.0, "sampler_name": "dpmpp_2m",
                 "scheduler": "karras", "denoise": 0.5, "bbox_crop_factor": 2.0},
                {"image": "decode.0", "model": "apply_lora.0", "clip": "clip.0", "vae": "checkpoint.2",
                 "positive": "positive.0", "negative": "negative.0", "bbox_detector": "detector.0"},
            ),
            "save": Node("SaveImage", ["HyperLoRA"], {"images": "detailer.0"}),
        }
    )  # fmt: skip


def slider() -> dict[str, Node]:
    """A concept from two photos, at -0.7 and +0.7 beside the person's LoRA at 0.85."""
    chain = (
        {"hyper": UNI_LOADER} | uni_chain(0.85) | uni_chain(-0.7, "without", "less") | uni_chain(0.7, "with", "more")
    )
    chain["apply_less"].links["model"] = "apply_lora.0"
    chain["apply_more"].links["model"] = "apply_less.0"
    return chain | picture("apply_more.0")


def base_and_save() -> dict[str, Node]:
    """Both branches from two photos, and the LoRA as a file."""
    chain = full_chain(0.85, "apply_base.0") | {
        "photo_2": Node("LoadImage", ["photo_2.png", "image"]),
        "photos": Node("ImageBatch", [], {"image1": "photo.0", "image2": "photo_2.0"}),
        "surroundings": Node(
            "HyperLoRABaseCond",
            [True, "1,1,1,1", True],
            {"hyper_lora": "hyper.0", "images": "photos.0", "face_attr": "faces.0"},
        ),
        "base": Node("HyperLoRAGenerateBaseLoRA", [], {"hyper_lora": "hyper.0", "base_cond": "surroundings.0"}),
        "apply_base": Node("HyperLoRAApplyLoRA", [0.4], {"model": "checkpoint.0", "lora": "base.0"}),
        "file": Node("HyperLoRASaveLoRA", ["loras/HyperLoRA"], {"lora": "lora.0"}),
    }
    for name in ("faces", "condition"):
        chain[name].links["images"] = "photos.0"
    return chain | picture("apply.0")


WORKFLOWS = {make.__name__: make() for make in (text_to_image, uni, instantid, face_detailer, slider, base_and_save)}


def api(name: str) -> dict:
    """What the editor sends to /prompt, and exports as API format."""
    nodes = WORKFLOWS[name]
    ids = {node: str(number) for number, node in enumerate(nodes, start=1)}
    workflow = {}
    for label, node in nodes.items():
        widgets = zip(KINDS[node.kind].widgets, node.widgets, strict=True)
        links = {socket: link.split(".") for socket, link in node.links.items()}
        workflow[ids[label]] = {
            "class_type": node.kind,
            "inputs": {name: value for name, value in widgets if name}
            | {socket: [ids[start], int(slot)] for socket, (start, slot) in links.items()},
        }
    return workflow


def graph(name: str) -> dict:
    """The file that the editor saved: version 0.4, widgets by position, sockets without widgets."""
    nodes = WORKFLOWS[name]
    ids = {node: number for number, node in enumerate(nodes, start=1)}
    saved = {
        ids[label]: {
            "id": ids[label],
            "type": node.kind,
            "pos": [(ids[label] - 1) % 6 * 350, (ids[label] - 1) // 6 * 450],
            "size": [300, 200],
            "flags": {},
            "order": ids[label] - 1,
            "mode": 0,
            "inputs": [{"name": name, "type": kind, "link": None} for name, kind in KINDS[node.kind].sockets.items()],
            "outputs": [{"name": kind, "type": kind, "links": []} for kind in KINDS[node.kind].outputs],
            "properties": {"Node name for S&R": node.kind},
            "widgets_values": node.widgets,
        }
        for label, node in nodes.items()
    }
    links = []
    for label, node in nodes.items():
        for position, socket in enumerate(saved[ids[label]]["inputs"]):
            if socket["name"] not in node.links:  # an optional one
                continue
            start, slot = node.links[socket["name"]].split(".")
            socket["link"] = len(links) + 1
            links.append([len(links) + 1, ids[start], int(slot), ids[label], position, socket["type"]])
            saved[ids[start]]["outputs"][int(slot)]["links"].append(len(links))
    return {
        "last_node_id": len(saved),
        "last_link_id": len(links),
        "nodes": list(saved.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
