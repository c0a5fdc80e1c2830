"""The attention weights of a base model, by diffusers' names, one at a time: from tensors or from a checkpoint."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from torch import Tensor

from .errors import HyperLoRAError
from .lora import SDXL_LAYERS_PER_BLOCK, diffusers_path
from .weights_check import check_safetensors

# transformer blocks of each stack of attentions, from the models' published configurations
LAYOUTS = {
    "SDXL": {"down_blocks.1": (2, 2), "down_blocks.2": (10, 10), "mid_block": (10,), "up_blocks.0": (10, 10, 10),
             "up_blocks.1": (2, 2, 2)},
    "SSD-1B": {"down_blocks.1": (2, 2), "down_blocks.2": (4, 4), "up_blocks.0": (4, 4, 10), "up_blocks.1": (2, 1, 1)},
    "Segmind-Vega": {"down_blocks.1": (1, 1), "down_blocks.2": (2, 2), "up_blocks.0": (2, 2, 2), "up_blocks.1": (1, 1, 1)},
    "KOALA-1B": {"down_blocks.1": (2,), "down_blocks.2": (6,), "mid_block": (6,), "up_blocks.0": (6, 6), "up_blocks.1": (2, 2)},
    "KOALA-700M": {"down_blocks.1": (2,), "down_blocks.2": (5,), "up_blocks.0": (5, 5), "up_blocks.1": (2, 2)},
}  # fmt: skip

_LINEARS = "to_q", "to_k", "to_v", "to_out.0"
_PATH = re.compile(r"(?P<level>.+)\.attentions\.(?P<stack>\d+)\.transformer_blocks\.(?P<block>\d+)\.(?P<linear>.+)")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
_ORIGINAL = ("input_blocks.", "middle_block.", "output_blocks.")


class BaseLayers(Protocol):
    """The linear layers in the attentions of a UNet."""

    shapes: Mapping[str, tuple[int, int]]  # diffusers path, without `.weight` -> (out, in)

    def weight(self, path: str) -> Tensor:
        """[out, in], in any precision, on any device."""


class TensorLayers:
    """Of tensors by their names in a diffusers UNet's state_dict; other tensors are passed over."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = {path: tensors[name] for name, path in attention_paths(tensors).items()}
        self.shapes = {path: tuple(tensor.shape) for path, tensor in self._tensors.items()}

    def weight(self, path: str) -> Tensor:
        return self._tensors[path]


class FileLayers:
    """Of an SDXL checkpoint (.safetensors; a whole one or the UNet alone) or a diffusers folder; read when asked for.

    Raises HyperLoRAError for what isn't there, can't be read, or holds no such layers.
    """

    def __init__(self, path: str | Path):
        self.shapes: dict[str, tuple[int, int]] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        self._opened: dict[Path, safe_open] = {}  # a header of thousands of tensors is read once
        for file in _files(Path(path)):
            tensors = check_safetensors(file).tensors
            for name, layer in attention_paths(tensors).items():
                self.shapes[layer] = tensors[name][1]
                self._places[layer] = file, name
        if not self.shapes:
            raise HyperLoRAError(
                f"{path} holds no attention layers of an SDXL UNet. Give an SDXL checkpoint or a diffusers folder."
            )

    def weight(self, path: str) -> Tensor:
        file, name = self._places[path]
        if file not in self._opened:
            self._opened[file] = safe_open(file, framework="pt")
        return self._opened[file].get_tensor(name)


def attention_paths(names: Collection[str]) -> dict[str, str]:
    """Name of a weight, in diffusers' or the original checkpoint's naming -> diffusers path; only attentions' linears."""
    found = {}
    for name in names:
        path = name.removesuffix(".weight")
        if path != name and path.endswith(_LINEARS) and ".transformer_blocks." in path:
            found[name] = next(path.removeprefix(prefix) for prefix in _PREFIXES if path.startswith(prefix))
    original = [path for path in found.values() if path.startswith(_ORIGINAL)]
    if not original:
        levels = ("down_blocks.", "mid_block.", "up_blocks.")
        # what else has transformer blocks: motion modules, say
        return {name: path for name, path in found.items() if path.startswith(levels) and _PATH.fullmatch(path)}
    # three levels of ResNets with a downsampler each but the last, behind the first convolution
    numbers = {int(number) for name in names if (number := _number(name)) is not None}
    layers_per_block = (max(numbers) + 1) // 3 - 1 if numbers else SDXL_LAYERS_PER_BLOCK
    return {
        name: diffusers_path(f"lora_unet_{path.replace('.', '_')}", layers_per_block)
        for name, path in found.items()
        if path.startswith(_ORIGINAL)
    }


def _number(name: str) -> int | None:
    match = re.search(r"(?:^|\.)input_blocks\.(\d+)\.", name)
    return match and int(match[1])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for folder in (path / "unet", path / "sdxl" / "unet", path):
        files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
        if files:
            # one precision of several, or all parts of one
            return [file for file in files if "-of-" in file.name] or files[:1]
    raise HyperLoRAError(f"{path} holds no diffusers UNet. Give an SDXL checkpoint or a diffusers folder.")


def place(path: str) -> tuple[str, int, int, str]:
    """`up_blocks.0.attentions.1.transformer_blocks.3.attn2.to_k` -> ("up_blocks.0", 1, 3, "attn2.to_k")."""
    match = _PATH.fullmatch(path)
    return match["level"], int(match["stack"]), int(match["block"]), match["linear"]


def block_path(level: str, stack: int, block: int) -> str:
    """The inverse of `place`, without the linear."""
    return f"{level}.attentions.{stack}.transformer_blocks.{block}"


def depths(layers: BaseLayers) -> dict[str, dict[int, int]]:
    """Level -> stack of attentions -> its number of transformer blocks."""
    found: dict[str, dict[int, int]] = {}
    for path in layers.shapes:
        level, stack, block, _ = place(path)
        stacks = found.setdefault(level, {})
        stacks[stack] = max(stacks.get(stack, 0), block + 1)
    return {level: dict(sorted(stacks.items())) for level, stacks in sorted(found.items())}


def layout_name(layers: BaseLayers) -> str | None:
    """The published layout that the layers have, e.g. "SSD-1B"; None for another."""
    here = {level: tuple(stacks.values()) for level, stacks in depths(layers).items()}
    return next((name for name, layout in LAYOUTS.items() if layout == here), None)
