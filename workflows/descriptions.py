"""The shipped workflows, each described once; build.py writes them."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CATALOG = json.loads((ROOT / "models" / "catalog.json").read_text(encoding="utf-8"))
# this pack's name and version; a regular expression, because tomllib is missing before Python 3.11
PACK = dict(re.findall(r'^(name|version) = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))


@dataclass
class Node:
    """`values` fill widgets (the others keep their defaults); `links` name an output: input -> "node.output"."""

    kind: str
    values: dict = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    extra_height: int = 0  # px, for texts and pictures
    title: str = ""  # empty: the node's own
    mine: bool = False  # green: what the user changes from picture to picture
    models: list[str] = field(default_factory=list)  # items of the catalog that the editor offers to download


@dataclass
class Group:
    title: str
    columns: list[list[str]]  # names of nodes, from left to right and from top to bottom


@dataclass
class Workflow:
    nodes: dict[str, Node]  # numbered from 1 in this order
    groups: list[Group]
    note: str
    note_size: tuple[int, int]


def item(name: str) -> dict:
    return next(item for item in CATALOG["items"] if item["name"] == name)


def size_of(name: str) -> str:
    """Such as "3.1 GB": all files of an item of the catalog."""
    total = 0.0
    for file in item(name)["files"]:
        number, unit = (file["size"], "B") if file["size"] else file["about"].split()
        total += float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    return f"{total / 1e9:.1f} GB"


def files_table(*names: str) -> str:
    rows = ["| what | size | goes to, below models/ |", "|---|---|---|"]
    for name in names:
        entry = item(name)
        path = entry["files"][0]["path"]
        place = f"{path.rpartition('/')[0]}/" if len(entry["files"]) > 1 else path
        rows.append(f"| [{entry['title']}]({entry['page']}) | {size_of(name)} | {place} |")
    return "\n".join(rows)


def identity_nodes(checkpoint: str, face_pack: str, photo: str) -> dict[str, Node]:
    """Loaders, photo, identity, LoRA: alike in every workflow."""
    return {
        "hyperlora": Node("HyperLoRALoadModel", {"checkpoint": checkpoint}),
        "face_analysis": Node("HyperLoRALoadFaceAnalysis", {"face_pack": face_pack}),
        "photo": Node("LoadImage", {"image": photo}, extra_height=300, mine=True),
        "identity": Node(
            "HyperLoRAEncodeIdentity",
            links={
                "hyperlora": "hyperlora.hyperlora",
                "face_analysis": "face_analysis.face_analysis",
                "photos": "photo.IMAGE",
            },
        ),
        "lora": Node(
            "HyperLoRAGenerateLoRA", links={"hyperlora": "hyperlora.hyperlora", "identity": "identity.identity"}
        ),
    }


def picture_nodes(model: str, clip: str, vae: str, prompt: str, negative: str, side: int, sampler: dict, prefix: str):
    """LoRA on the model, prompt, sampler, picture: alike in every workflow."""
    return {
        "apply": Node(
            "HyperLoRAApply", links={"model": model, "id_lora": "lora.id_lora", "base_lora": "lora.base_lora"}
        ),
        "prompt": Node("HyperLoRATriggerPrompt", {"prompt": prompt}, extra_height=110, mine=True),
        "positive": Node(
            "CLIPTextEncode", links={"clip": clip, "text": "prompt.prompt"}, title="Positive prompt", extra_height=30
        ),
        "negative": Node(
            "CLIPTextEncode", {"text": negative}, {"clip": clip}, extra_height=60, title="Negative prompt"
        ),
        "size": Node("EmptyLatentImage", {"width": side, "height": side}),
        "sampler": Node(
            "KSampler",
            {"seed": 1, **sampler},
            {
                "model": "apply.model",
                "positive": "positive.CONDITIONING",
                "negative": "negative.CONDITIONING",
                "latent_image": "size.LATENT",
            },
        ),
        "decode": Node("VAEDecode", links={"samples": "sampler.LATENT", "vae": vae}),
        "save": Node("SaveImage", {"filename_prefix": prefix}, {"images": "decode.IMAGE"}, extra_height=300),
    }


def portrait() -> Workflow:
    checkpoint = Path(item("realvisxl")["files"][0]["path"]).name
    return Workflow(
        nodes={
            "checkpoint": Node("CheckpointLoaderSimple", {"ckpt_name": checkpoint}, models=["realvisxl"]),
            "clip_skip": Node("CLIPSetLastLayer", {"stop_at_clip_layer": -2}, {"clip": "checkpoint.CLIP"}),
            **identity_nodes("sdxl_hyper_id_lora_v1_fidelity", "antelopev2", "example.png"),  # every new ComfyUI has it
            "crops": Node("PreviewImage", links={"images": "identity.crops"}, extra_height=240),
            **picture_nodes(
                model="checkpoint.MODEL",
                clip="clip_skip.CLIP",
                vae="checkpoint.VAE",
                prompt="portrait photo of a person in a forest, autumn, soft light, knitted sweater",
                negative="blurry, low quality, deformed, watermark, text",
                side=1024,
                sampler={"steps": 20, "cfg": 5.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
                prefix="hyperlora",
            ),
        },
        groups=[
            Group("1 Who", [["hyperlora", "face_analysis", "photo"], ["identity", "crops"]]),
            Group("2 Model", [["checkpoint", "clip_skip", "lora", "apply"]]),
            Group("3 Picture", [["prompt", "positive", "negative", "size"], ["sampler", "decode", "save"]]),
        ],
        note_size=(460, 680),
        note=f"""## A person from one photo

The green nodes are yours to change:

1. **Load Image**: drop a photo on it. Upright, sharp, one face, nothing in front of it.
2. **Trigger Prompt**: write what the picture shows. The trigger words are added for you.
3. Press **Run**.

**Preview Image** shows what the network saw of the photo: it should be the face of the right person.

**Apply HyperLoRA**: weight 0.75 to 0.85. Lower it if the prompt is ignored or the face shows artefacts.

More photos of the same person: *photos_2* to *photos_4* of **Encode Identity**. They are averaged.

## Files

{files_table("fidelity", "clip-vision", "antelopev2", "realvisxl")}

In the folder of this pack, with ComfyUI's own Python:

`python -m hyperlora_core download` fetches the first three,

`python -m hyperlora_core download realvisxl` the last one; any SDXL checkpoint will do,

`python -m hyperlora_core doctor` says what is missing.

Then press **R**, and choose the files in the loaders.

The weights are for non-commercial use. Use photos only of people who agree to it.
""",
    )


def demo() -> Workflow:
    shipped = "demo (shipped)"
    return Workflow(
        nodes={
            "demo": Node("HyperLoRALoadDemo"),
            **identity_nodes(shipped, shipped, "hyperlora_demo_person.png"),  # put there by the pack
            **picture_nodes(
                model="demo.model",
                clip="demo.clip",
                vae="demo.vae",
                prompt="portrait of a person, blue background, green shirt",
                negative="",
                side=128,
                sampler={"steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"},
                prefix="hyperlora_demo",
            ),
        },
        groups=[
            Group("1 Who", [["hyperlora", "face_analysis", "photo"], ["identity"]]),
            Group("2 Model", [["demo", "lora", "apply"]]),
            Group("3 Picture", [["prompt", "positive", "negative", "size"], ["sampler", "decode", "save"]]),
        ],
        note_size=(460, 380),
        note="""## The same steps on small models, without any download

The demo models know drawn people only. They come with this pack and need no graphics card.
Their training is not finished: the picture follows the prompt, but shows no likeness yet.
The green nodes are yours to change:

1. Press **Run**: the drawn person in **Load Image** comes with the pack.
2. **Trigger Prompt**: write what the picture shows.
3. **Load Image**: drop another drawn person on it; `python -m hyperlora_core demo` writes three into `outputs/demo/photos`.

Keep 128 x 128, and don't mix demo and real models: their LoRAs don't fit each other.

For photos of real people open the template **1_portrait_from_photo**.
""",
    )


WORKFLOWS = {"1_portrait_from_photo": portrait, "demo": demo}
