"""Workflows in API format and pictures to feed them with."""

import copy
import json

import numpy as np
from PIL import Image
from places import ROOT

from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render

DEMO = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))


def person(number: int, scene: int = 0, size: int = 256) -> Image.Image:
    """A drawn photo of a person whom no network saw in training."""
    drawn = Scene.random(np.random.default_rng(scene), sketch=0, hat=0, glasses=0)
    return Image.fromarray(render(Identity.from_seed(HELD_OUT[number]), drawn, size=size).image)


def demo(photo: str, **changes: dict) -> dict:
    """The demo workflow with an uploaded photo; `changes` by node class: demo(photo, KSampler={"seed": 2})."""
    workflow = copy.deepcopy(DEMO)
    for kind, values in ({"LoadImage": {"image": photo}} | changes).items():
        for node in workflow.values():
            if node["class_type"] == kind:
                node["inputs"] |= values
    return workflow


def nodes_of(workflow: dict, kind: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [name for name, node in workflow.items() if node["class_type"] == kind]
