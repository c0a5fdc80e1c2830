"""Workflows in API format and pictures to feed them with."""

import json

from places import ROOT

WORKFLOWS = ROOT / "workflows"
SMALL = 128  # px, what the demo model paints
JUDGED = ("HyperLoRASimilarity", "PreviewAny")  # what the template says of its picture


def read(path: str) -> dict:
    """A shipped workflow, such as api/demo.json."""
    return json.loads((WORKFLOWS / path).read_text(encoding="utf-8"))


def demo(photo: str, **changes: dict) -> dict:
    """The demo workflow with an uploaded photo; `changes` by node class: demo(photo, KSampler={"seed": 2}).

    The person is merged, the node's default, and computed in fp32, whatever the processor is fast in, unless told otherwise:
    what most tests compare with. Nothing judges the picture.
    """
    workflow = {name: node for name, node in read("api/demo.json").items() if node["class_type"] not in JUDGED}
    usual = {"HyperLoRAApply": {"mode": "merge"}, "HyperLoRALoadModel": {"precision": "fp32"}}
    given = {kind: values | changes.pop(kind, {}) for kind, values in usual.items()}
    for kind, values in ({"LoadImage": {"image": photo}} | given | changes).items():
        for node in workflow.values():
            if node["class_type"] == kind:
                node["inputs"] |= values
    return workflow


def on_demo(workflow: dict, photos: list[str]) -> dict:
    """The same steps on the shipped models: smaller, shorter, with drawn people."""
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "HyperLoRALoadDemo", "inputs": {}}  # its outputs stand in the same order
        elif node["class_type"] == "LoadImage":
            inputs["image"] = photos.pop(0)
        elif node["class_type"] == "HyperLoRASaveIdentity":
            inputs["overwrite"] = True
        for name, value in {"checkpoint": "demo (shipped)", "face_pack": "demo (shipped)", "steps": 2}.items():
            if name in inputs:
                inputs[name] = value
        for name in ("width", "height"):
            if isinstance(inputs.get(name), int) and node["class_type"] != "SolidMask":
                inputs[name] = SMALL
        if "megapixels" in inputs:
            inputs["megapixels"] = SMALL**2 / 1024**2
    return workflow


def nodes_of(workflow: dict, kind: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [name for name, node in workflow.items() if node["class_type"] == kind]
