"""Workflows in API format and pictures to feed them with."""

import copy
import json

from places import ROOT

DEMO = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))
JUDGED = ("HyperLoRASimilarity", "PreviewAny")  # what the template says of its picture


def demo(photo: str, **changes: dict) -> dict:
    """The demo workflow with an uploaded photo; `changes` by node class: demo(photo, KSampler={"seed": 2}).

    The person is merged, the node's default, and computed in fp32, whatever the processor is fast in, unless told otherwise:
    what most tests compare with. Nothing judges the picture.
    """
    workflow = {name: copy.deepcopy(node) for name, node in DEMO.items() if node["class_type"] not in JUDGED}
    usual = {"HyperLoRAApply": {"mode": "merge"}, "HyperLoRALoadModel": {"precision": "fp32"}}
    given = {kind: values | changes.pop(kind, {}) for kind, values in usual.items()}
    for kind, values in ({"LoadImage": {"image": photo}} | given | changes).items():
        for node in workflow.values():
            if node["class_type"] == kind:
                node["inputs"] |= values
    return workflow


def nodes_of(workflow: dict, kind: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [name for name, node in workflow.items() if node["class_type"] == kind]
