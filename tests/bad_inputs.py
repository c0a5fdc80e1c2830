"""What users feed it by mistake: each case once, for Python, the command line and the node alike.

A case makes a bad checkpoint folder (from a good one) or a bad photo, and lists words that the sentence must hold.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from places import FIXTURES
from safetensors.torch import load_file, save_file

GOOD = FIXTURES / "clip_arcface"
OTHER = FIXTURES / "with_base"
RESAMPLER = "resampler.safetensors"
MODULES = "hyper_lora_modules.safetensors"


class Case(NamedTuple):
    spoil: Callable[[Path], None]
    words: tuple[str, ...]


def edit(file: Path, change: Callable[[dict], dict]) -> None:
    tensors = change(load_file(file))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def without(*names: str) -> Callable[[dict], dict]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict]:
    return lambda tensors: tensors | {name: change(tensors[name])}


HTML = "<!DOCTYPE html><html><body>404</body></html>"

CHECKPOINTS = {
    "modules missing": Case(lambda d: (d / MODULES).unlink(), (MODULES, "download")),
    "resampler missing": Case(lambda d: (d / RESAMPLER).unlink(), (RESAMPLER, "download")),
    "projector missing": Case(lambda d: (d / "id_projector.safetensors").unlink(), ("id_projector", "download")),
    "modules truncated": Case(lambda d: cut(d / MODULES), (MODULES, "incomplete")),
    "resampler truncated": Case(lambda d: cut(d / RESAMPLER), (RESAMPLER, "incomplete")),
    "html as weights": Case(lambda d: (d / RESAMPLER).write_text(HTML), (RESAMPLER, "web page")),
    "pickled": Case(lambda d: torch.save({"x": torch.zeros(1)}, d / RESAMPLER), (RESAMPLER, "pickled", "refused")),
    "empty file": Case(lambda d: (d / RESAMPLER).write_bytes(b""), (RESAMPLER, "empty")),
    "nonsense": Case(lambda d: (d / RESAMPLER).write_bytes(b"nonsense" * 99), (RESAMPLER, "isn't a safetensors file")),
    "json broken": Case(
        lambda d: (d / "hyper_lora_modules.json").write_text("{"), ("modules.json", "Download it again")
    ),
    "json of something else": Case(
        lambda d: (d / "hyper_lora_modules.json").write_text('{"a": {"hidden_size": 4}}'),
        ("modules.json", "Download it again"),
    ),
    "modules of another checkpoint": Case(lambda d: shutil.copy(OTHER / MODULES, d), (MODULES, "mixed")),
    "resampler of another checkpoint": Case(lambda d: shutil.copy(OTHER / RESAMPLER, d), (RESAMPLER, "mixed")),
    "projector of another checkpoint": Case(
        lambda d: shutil.copy(OTHER / "id_projector.safetensors", d), ("id_projector", "mixed")
    ),
    "base of another checkpoint": Case(
        lambda d: shutil.copy(OTHER / "base_resampler.safetensors", d), ("base_down_basis", "mixed")
    ),
    "basis tensor missing": Case(
        lambda d: edit(d / MODULES, without("1.to_k.id_up_basis")), ("1.to_k.id_up_basis", "mixed")
    ),
    "basis tensor misshapen": Case(
        lambda d: edit(d / MODULES, replaced("1.to_k.id_up_basis", lambda t: t[:, :, :5])),
        ("1.to_k.id_up_basis", "doesn't fit"),
    ),
    "unknown tensor": Case(
        lambda d: edit(d / RESAMPLER, lambda tensors: tensors | {"layers.0.surprise": torch.zeros(1)}),
        (RESAMPLER, "surprise"),
    ),
    "latents missing": Case(lambda d: edit(d / RESAMPLER, without("latents")), (RESAMPLER, "latents")),
}


def picture(size: tuple[int, int] = (256, 256), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).convert(mode)


# photos that can't be used at all; odd ones that can (grey, 16 bits, CMYK, EXIF...) are in test_photo.py
PHOTOS = {
    "no face": Case(lambda p: picture().save(p, "PNG"), ("No face was found",)),
    "one pixel wide": Case(lambda p: picture((1, 300)).save(p, "PNG"), ("1 x 300", "too small")),
    "html as photo": Case(lambda p: p.write_text(HTML), ("isn't a picture",)),
    "truncated photo": Case(
        lambda p: (picture().save(p, "PNG"), p.write_bytes(p.read_bytes()[:5000])), ("is damaged or cut off",)
    ),
    "not there": Case(lambda p: None, ("doesn't exist",)),
}


def bad_checkpoint(name: str, folder: Path) -> tuple[str, ...]:
    """Make the named bad checkpoint at `folder`; answers the words of its sentence."""
    shutil.copytree(GOOD, folder)
    CHECKPOINTS[name].spoil(folder)
    return CHECKPOINTS[name].words


def assert_sentence(text: str, words: tuple[str, ...]) -> None:
    assert "\n" not in text.strip(), text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text
