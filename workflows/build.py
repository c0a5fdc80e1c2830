"""Writes the shipped workflows for the graph editor and, in api/, for the HTTP API, from the descriptions in describe/.

    python workflows/build.py --server http://127.0.0.1:8188

The order of a node's inputs, widgets and outputs comes from a running ComfyUI that has this pack installed, or from a file
with what its /object_info says (--definitions FILE). Other packs needn't be there: what we use of them is in
tests/fixtures/peer_nodes.json.
"""

import argparse
import json
import re
import urllib.request
import uuid
from functools import cache
from pathlib import Path

from describe import WORKFLOWS
from describe.parts import PACK, ROOT, Node, Workflow, item

FOLDER = ROOT / "workflows"
PEERS = ROOT / "tests" / "fixtures" / "peer_nodes.json"
CORE = {"name": "comfy-core", "version": "0.25.0"}  # the oldest ComfyUI that the pack runs in

SEEDS = ("seed", "noise_seed")  # the editor adds its control to these, whatever the definition says
OFFERED_FROM = ("https://huggingface.co/", "https://civitai.com/")
OFFERED_AS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
WIDTH = 300  # px, as all sizes below
TITLE, SLOT, WIDGET, PADDING = 30, 20, 24, 14  # heights of a node's parts in the editor
GAP, COLUMN_GAP, GROUP_GAP, GROUP_TITLE = 40, 50, 40, 40
GREEN = {"color": "#232", "bgcolor": "#353"}
BLUE = "#3f789e"
BLACK = {"color": "#222", "bgcolor": "#000"}
NOTE_WIDTH, NOTE_LINE, NOTE_LETTERS = 480, 20, 60  # a line's height and its letters on average


def declared(definition: dict) -> dict[str, tuple]:
    """Input name -> (type, options), in the editor's order; a list of choices is a COMBO."""
    inputs = {}
    for group in ("required", "optional"):
        for name in definition["input_order"].get(group, []):
            kind, options = (*definition["input"][group][name], {})[:2]
            inputs[name] = ("COMBO", {"options": kind, **options}) if isinstance(kind, list) else (kind, options)
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
        control = options.get("control_after_generate", name in SEEDS)
        if control:
            saved.append(node.control or ("randomize" if control is True else control))
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
        frames.append({"id": number, "title": group.title, "bounding": [left, 0, x - left, bottom]})
        x += GROUP_GAP
    deepest = max(frame["bounding"][3] for frame in frames)
    for frame in frames:
        frame["bounding"][3] = deepest
        frame |= {"color": BLUE, "flags": {}}
    return places, frames


def pack_of(kind: str) -> dict[str, str]:
    """Name in the registry, and version."""
    if kind.startswith("HyperLoRA"):
        return PACK
    return next((pack for pack in peers() if kind in pack["nodes"]), CORE)


def offered(entry: dict) -> list[dict[str, str]]:
    """The files of a catalog's item that the editor can offer to download: it knows two hosts, and no .bin and .onnx."""
    models = []
    for file in entry["files"]:
        directory, _, name = file["path"].partition("/")
        if file["url"] and file["url"].startswith(OFFERED_FROM) and name.endswith(OFFERED_AS):
            models.append({"name": name, "url": file["url"], "directory": directory})
    return models


def editor_node(number: int, node: Node, definition: dict, place: list) -> dict:
    """One node as the editor saves it, not yet linked: sockets first, then widgets."""
    inputs = declared(definition)
    sockets = [{"name": name, "type": kind, "link": None} for name, (kind, _) in inputs.items() if kind not in WIDGETS]
    widgets = [
        {"name": name, "type": kind, "widget": {"name": name}, "link": None}
        for name, (kind, _) in inputs.items()
        if kind in WIDGETS
    ]
    pack = pack_of(node.kind)
    properties = {"cnr_id": pack["name"], "ver": pack["version"], "Node name for S&R": node.kind}
    values = widget_values(node, definition)
    models = [model for name in node.models for model in offered(item(name)) if model["name"] in values.values()]
    if models:
        properties["models"] = models
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


def note_height(text: str) -> int:
    """About as high as the text is when the editor has drawn it; a longer one gets a scroll bar."""
    text = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text)  # links show their first half
    return PADDING + NOTE_LINE * sum(1 + len(line) // NOTE_LETTERS for line in text.splitlines())


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
        "id": len(nodes) + 1, "type": "MarkdownNote", "title": "Read me", "pos": [-NOTE_WIDTH - GROUP_GAP, TITLE],
        "size": [NOTE_WIDTH, note_height(workflow.note)], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
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


@cache
def peers() -> list[dict]:
    """Other packs, with the nodes that we use of them."""
    return json.loads(PEERS.read_text(encoding="utf-8"))


def files(definitions: dict) -> dict[str, str]:
    """Path below this folder -> text, from a ComfyUI's /object_info."""
    texts = {}
    for pack in peers():
        definitions = definitions | pack["nodes"]
    for name, describe in WORKFLOWS.items():
        workflow = describe()
        texts[f"{name}.json"] = json.dumps(editor_format(name, workflow, definitions), indent=1) + "\n"
        texts[f"api/{name}.json"] = one_line_each(api_format(workflow, definitions))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    parser.add_argument("--definitions", type=Path, help="a saved /object_info instead")
    options = parser.parse_args()
    if options.definitions:
        definitions = json.loads(options.definitions.read_text(encoding="utf-8"))
    else:
        try:
            with urllib.request.urlopen(f"{options.server}/object_info", timeout=60) as answer:
                definitions = json.load(answer)
        except OSError as error:
            parser.error(
                f"no ComfyUI answers at {options.server} ({error}): start it, or give --server or --definitions"
            )
    for path, text in files(definitions).items():
        (FOLDER / path).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
