"""What a portrait of the drawn world shows besides the person, and what a prompt asks for, in the same words.

A small network (train/demo_attributes.py) reads pictures; captions are read by their vocabulary (demo/portraits/scene.py).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..demo.portraits import BACKGROUND_KINDS, COLOURS
from ..errors import HyperLoRAError
from ..packages import require

SIZE = 128  # px, of the network's input
FLAGS = ("no", "yes")
# attribute: its values, in the order of the network's outputs
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "background_kind": BACKGROUND_KINDS,
    "shirt": tuple(COLOURS),
    "hat": FLAGS,
    "hat_colour": tuple(COLOURS),
    "glasses": FLAGS,
    "smiling": FLAGS,
    "old": FLAGS,
    "sketch": FLAGS,
}
FILE = "attributes.onnx"
METADATA = "hyperlora.attributes"

Looks = dict[str, str]  # attribute -> value

_COLOUR = "|".join(COLOURS)
_WORDS = {"hat": r"\bhat\b", "glasses": r"\bglasses\b", "smiling": r"\bsmiling\b", "old": r"\bold\b",
          "sketch": r"\bsketch\b"}  # fmt: skip
_BACKGROUND = re.compile(rf"\b(?:({'|'.join(BACKGROUND_KINDS)}) )?({_COLOUR}) background\b")
_SHIRT = re.compile(rf"\b({_COLOUR}) shirt\b")
_HAT = re.compile(rf"\b({_COLOUR}) hat\b")


def shown(caption: str) -> Looks:
    """What a caption says of its portrait; what it doesn't mention and could isn't there, as in the captions drawn.

    A background or shirt that isn't mentioned has no entry: nothing is known of it.
    """
    words = caption.lower()
    looks = {name: FLAGS[bool(re.search(pattern, words))] for name, pattern in _WORDS.items()}
    if background := _BACKGROUND.search(words):
        looks |= {"background": background[2], "background_kind": background[1] or "plain"}
    if shirt := _SHIRT.search(words):
        looks["shirt"] = shirt[1]
    if hat := _HAT.search(words):
        looks["hat_colour"] = hat[1]
    return looks


def asked(prompt: str) -> Looks:
    """What a prompt names, and so should be seen: the absence of a hat, or a plain background, isn't named."""
    return {name: value for name, value in shown(prompt).items() if value not in ("no", "plain")}


def right(wanted: Looks, seen: Looks) -> dict[str, bool]:
    """Attribute -> whether `seen` has the value in `wanted`."""
    return {name: seen.get(name) == value for name, value in wanted.items()}


def network_input(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [h, w, 3] each -> float32 [n, 3, 128, 128] in -1..1."""
    sized = [
        p if p.shape[:2] == (SIZE, SIZE) else np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for p in pictures
    ]  # fmt: skip
    return np.moveaxis(np.stack(sized), -1, 1).astype(np.float32) / 127.5 - 1


class AttributeReader:
    """The network that reads pictures: [n, 3, 128, 128] in, the attributes' logits side by side out."""

    def __init__(self, folder: str | Path):
        """Open `attributes.onnx` of a folder. Raises HyperLoRAError when it isn't there or is another network."""
        runtime = require("onnxruntime", "Reading attributes")
        native = require("onnxruntime.capi.onnxruntime_pybind11_state", "Reading attributes")
        path = Path(folder) / FILE
        remedy = "Train it: hyperlora train demo-attributes"
        try:
            options = runtime.SessionOptions()
            options.intra_op_num_threads = 1  # small networks lose by more
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (native.NoSuchFile, native.InvalidProtobuf, native.InvalidGraph, native.Fail) as error:
            raise HyperLoRAError(f"{path} is missing or damaged, so attributes can't be read. {remedy}") from error
        said = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        if said is None or json.loads(said) != {name: list(values) for name, values in ATTRIBUTES.items()}:
            raise HyperLoRAError(f"{path} isn't a network that reads this version's attributes. {remedy}")

    def read(self, pictures: Sequence[np.ndarray]) -> list[Looks]:
        """uint8 [h, w, 3] each -> the likeliest value of each attribute; a picture without hat has no hat colour."""
        best = {name: chances.argmax(1) for name, chances in self.chances(pictures).items()}
        rows = [{name: ATTRIBUTES[name][of[i]] for name, of in best.items()} for i in range(len(pictures))]
        return [{k: v for k, v in row.items() if k != "hat_colour" or row["hat"] == "yes"} for row in rows]

    def chances(self, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """uint8 [h, w, 3] each -> how likely each value of each attribute is: [n, values], rows summing to 1."""
        if not pictures:
            return {name: np.zeros((0, len(values))) for name, values in ATTRIBUTES.items()}
        (logits,) = self._session.run(None, {"input": network_input(pictures)})  # (n, all values)
        ends = np.cumsum([len(values) for values in ATTRIBUTES.values()])[:-1]
        parts = np.split(logits.astype(np.float64), ends, axis=1)
        powers = [np.exp(part - part.max(1, keepdims=True)) for part in parts]
        return {name: of / of.sum(1, keepdims=True) for name, of in zip(ATTRIBUTES, powers, strict=True)}
