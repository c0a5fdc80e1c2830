"""Writes the shipped workflows, each described once below: for the graph editor and, in api/, for the HTTP API.

    python workflows/build.py --server http://127.0.0.1:8188

The order of a node's inputs, widgets and outputs comes from a running ComfyUI that has this pack installed.
"""

import argparse
import json
import re
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
CATALOG = json.loads((ROOT / "models" / "catalog.json").read_text(encoding="utf-8"))
# this pack's name and version; a regular expression, because tomllib is missing before Python 3.11
PACK = dict(re.findall(r'^(name|version) = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))
CORE = {"name": "comfy-core", "version": "0.25.0"}  # the oldest ComfyUI that the pack runs in

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
WIDTH = 300  # px, as all sizes below
TITLE, SLOT, WIDGET, PADDING = 30, 20, 24, 14  # heights of a node's parts in the editor
GAP, COLUMN_GAP, GROUP_GAP, GROUP_TITLE = 40, 50, 40, 40
GREEN = {"color": "#232", "bgcolor": "#353"}
BLACK = {"color": "#222", "bgcolor": "#000"}


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
    photo: str = "example.png"  # lies in the input folder of a new ComfyUI


def item(name: str) -> dict:
    return next(item for item in CATALOG["items"] if item["name"] == name)


def size_of(name: str) -> str:
    """Such as "3.1 GB": all files of an item of the catalog."""
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    total = 0.0
    for file in item(name)["files"]:
        number, unit = file["about"].split() if file["size"] is None else (file["size"] / 1e9, "GB")
        total += float(number) * units[unit]
    return f"{total / 1e9:.1f} GB"


def files_table(*names: str) -> str:
    rows = ["| what | size | goes to, below models/ |", "|---|---|---|"]
    for name in names:
        entry = item(name)
        path = entry["files"][0]["path"]
        place = f"{path.rpartition('/')[0]}/" if len(entry["files"]) > 1 else path
        rows.append(f"| [{entry['title']}]({entry['page']}) | {size_of(name)} | {place} |")
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------------------------------
# the workflows


def identity_nodes(checkpoint: str, face_pack: str) -> dict[str, Node]:
    """Loaders, photo, identity, LoRA: alike in every workflow."""
    return {
        "hyperlora": Node("HyperLoRALoadModel", {"checkpoint": checkpoint}),
        "face_analysis": Node("HyperLoRALoadFaceAnalysis", {"face_pack": face_pack}),
        "photo": Node("LoadImage", {"image": Workflow.photo}, extra_height=300, mine=True),
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
        "positive": Node("CLIPTextEncode", links={"clip": clip, "text": "prompt.prompt"}, title="Positive prompt", extra_height=30),
        "negative": Node("CLIPTextEncode", {"text": negative}, {"clip": clip}, extra_height=60, title="Negative prompt"),
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
            **identity_nodes("sdxl_hyper_id_lora_v1_fidelity", "antelopev2"),
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
            **identity_nodes(shipped, shipped),
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
        note=f"""## The same steps on small models, without any download

The demo models know drawn people only. They come with this pack and need no graphics card.
The green nodes are yours to change:

1. **Load Image**: open [this drawn person](/api/workflow_templates/{PACK["name"]}/demo_person.png), save the picture,
   and drop it here. Or take one from `outputs/demo/photos`, which `python -m hyperlora_core demo` writes.
2. **Trigger Prompt**: write what the picture shows.
3. Press **Run**.

Keep 128 x 128, and don't mix demo and real models: their LoRAs don't fit each other.

For photos of real people open the template **1_portrait_from_photo**.
""",
    )


WORKFLOWS = {"1_portrait_from_photo": portrait, "demo": demo}


# ---------------------------------------------------------------------------------------------------------------------
# the two formats


def declared(definition: dict) -> dict[str, tuple]:
    """Input name -> (type, options), in the editor's order; a list of choices is a COMBO."""
    inputs = {}
    for group in ("required", "optional"):
        for name in definition["input_order"].get(group, []):
            kind, *options = definition["input"][group][name]
            inputs[name] = ("COMBO" if isinstance(kind, list) else kind, options[0] if options else {})
            if isinstance(kind, list):
                inputs[name][1].setdefault("options", kind)
    return inputs


def widget_values(node: Node, definition: dict) -> dict:
    """The value of every widget; one without a default must be among `node.values`."""
    inputs = declared(definition)
    widgets = {name: options for name, (kind, options) in inputs.items() if kind in WIDGETS}
    unknown = node.values.keys() - widgets.keys() | node.links.keys() - inputs.keys()
    if unknown:
        raise ValueError(f"{node.kind} has no {', '.join(sorted(unknown))}")
    values = {}
    for name, options in widgets.items():
        fallback = options["options"][0] if options.get("options") else ""
        values[name] = node.values.get(name, options.get("default", fallback))
    return values


def source(link: str, ids: dict[str, int], workflow: Workflow, definitions: dict) -> tuple[int, int, str]:
    """Id, output slot and type of "node.output"."""
    name, output = link.split(".")
    definition = definitions[workflow.nodes[name].kind]
    slot = definition["output_name"].index(output)
    return ids[name], slot, definition["output"][slot]


def api_format(workflow: Workflow, definitions: dict) -> dict:
    ids = {name: number for number, name in enumerate(workflow.nodes, start=1)}
    nodes = {}
    for name, node in workflow.nodes.items():
        definition = definitions[node.kind]
        values = widget_values(node, definition)
        links = {key: list(source(link, ids, workflow, definitions)[:2]) for key, link in node.links.items()}
        inputs = {
            key: [str(links[key][0]), links[key][1]] if key in links else values[key]
            for key in declared(definition)
            if key in links or key in values
        }
        nodes[str(ids[name])] = {
            "class_type": node.kind,
            "inputs": inputs,
            "_meta": {"title": node.title or definition["display_name"]},
        }
    return nodes


def saved_values(node: Node, definition: dict) -> list:
    """`widgets_values`: with the values of the controls that the editor adds to some widgets."""
    saved = []
    for name, value in widget_values(node, definition).items():
        saved.append(value)
        options = declared(definition)[name][1]
        if options.get("control_after_generate"):
            saved.append("randomize")
        if options.get("image_upload"):
            saved.append("image")
    return saved


def height(node: Node, definition: dict) -> int:
    inputs = declared(definition).values()
    sockets = sum(kind not in WIDGETS for kind, _ in inputs)
    rows = max(sockets, len(definition["output"])) * SLOT + len(saved_values(node, definition)) * WIDGET
    return rows + PADDING + node.extra_height


def layout(workflow: Workflow, definitions: dict) -> tuple[dict[str, list], list[dict]]:
    """Node name -> [x, y, width, height], and the groups around them: columns from left to right."""
    places, frames = {}, []
    x = 0
    for number, group in enumerate(workflow.groups, start=1):
        left, bottom = x, 0
        x += GAP
        for column in group.columns:
            y = GROUP_TITLE + TITLE
            for name in column:
                node = workflow.nodes[name]
                tall = height(node, definitions[node.kind])
                places[name] = [x, y, WIDTH, tall]
                y += tall + TITLE + GAP
            bottom = max(bottom, y - TITLE)
            x += WIDTH + COLUMN_GAP
        x += GAP - COLUMN_GAP
        frames.append({"id": number, "title": group.title, "bounding": [left, 0, x - left, bottom], "color": "#3f789e", "flags": {}})
        x += GROUP_GAP
    deepest = max(frame["bounding"][3] for frame in frames)
    for frame in frames:
        frame["bounding"][3] = deepest
    return places, frames


def editor_node(number: int, node: Node, definition: dict, place: list) -> dict:
    """One node as the editor saves it, not yet linked: sockets first, then widgets."""
    inputs = declared(definition)
    sockets = [{"name": name, "type": kind, "link": None} for name, (kind, _) in inputs.items() if kind not in WIDGETS]
    widgets = [
        {"name": name, "type": kind, "widget": {"name": name}, "link": None}
        for name, (kind, _) in inputs.items()
        if kind in WIDGETS
    ]
    pack = PACK if node.kind.startswith("HyperLoRA") else CORE
    properties = {"cnr_id": pack["name"], "ver": pack["version"], "Node name for S&R": node.kind}
    files = [file for name in node.models for file in item(name)["files"]]
    if files:
        properties["models"] = [
            {"name": Path(file["path"]).name, "url": file["url"], "directory": Path(file["path"]).parent.as_posix()}
            for file in files
        ]
    outputs = zip(definition["output_name"], definition["output"], strict=True)
    return {
        "id": number,
        "type": node.kind,
        **({"title": node.title} if node.title else {}),
        "pos": place[:2],
        "size": place[2:],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": sockets + widgets,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "properties": properties,
        "widgets_values": saved_values(node, definition),
        **(GREEN if node.mine else {}),
    }


def editor_format(name: str, workflow: Workflow, definitions: dict) -> dict:
    ids = {name: number for number, name in enumerate(workflow.nodes, start=1)}
    places, groups = layout(workflow, definitions)
    nodes = {
        ids[name]: editor_node(ids[name], node, definitions[node.kind], places[name])
        for name, node in workflow.nodes.items()
    }
    links = []
    for target, node in workflow.nodes.items():
        for slot, socket in enumerate(nodes[ids[target]]["inputs"]):
            if socket["name"] in node.links:
                start, output, kind = source(node.links[socket["name"]], ids, workflow, definitions)
                socket["link"] = len(links) + 1
                links.append([len(links) + 1, start, output, ids[target], slot, kind])
                nodes[start]["outputs"][output]["links"].append(len(links))
    note = {
        "id": len(nodes) + 1, "type": "MarkdownNote", "title": "Read me", "pos": [-workflow.note_size[0] - GROUP_GAP, TITLE],
        "size": list(workflow.note_size), "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
        "properties": {}, "widgets_values": [workflow.note], **BLACK,
    }  # fmt: skip
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK['name']}/{name}")),
        "revision": 0,
        "last_node_id": len(nodes) + 1,
        "last_link_id": len(links),
        "nodes": [*nodes.values(), note],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def one_line_each(nodes: dict) -> str:
    rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(node)}" for key, node in nodes.items())
    return f"{{\n{rows}\n}}\n"


def files(definitions: dict) -> dict[str, str]:
    """Path below this folder -> text, from a ComfyUI's /object_info."""
    texts = {}
    for name, describe in WORKFLOWS.items():
        workflow = describe()
        texts[f"{name}.json"] = json.dumps(editor_format(name, workflow, definitions), indent=1) + "\n"
        texts[f"api/{name}.json"] = one_line_each(api_format(workflow, definitions))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    with urllib.request.urlopen(f"{parser.parse_args().server}/object_info", timeout=60) as answer:
        definitions = json.load(answer)
    for path, text in files(definitions).items():
        (FOLDER / path).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
