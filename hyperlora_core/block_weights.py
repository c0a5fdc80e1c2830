"""A strength for each block of the UNet: `down 1, middle 1, up 0.8`, or block by block, or a preset.

The up matrices are scaled, so a LoRA with block weights is an ordinary LoRA and costs what it cost before.
"""

import math
import re
from collections.abc import Mapping

import torch

from .basis import LoRA
from .errors import HyperLoRAError
from .lora import UP, diffusers_path, pairs

ALIKE = "all alike"

# Start values for SDXL from what others found its blocks do, not from a fit. down_blocks.2.attentions.1 decides over the
# layout, up_blocks.0.attentions.1 over style, light and colour (InstantStyle, arXiv 2404.02733); down_blocks.1 and
# up_blocks.1 work at half the latent's resolution, where skin, lashes and edges are drawn.
PRESETS = {
    ALIKE: "",
    # who it is, without the photo's framing and light
    "face only": "down_blocks.1 0.5, down_blocks.2.attentions.1 0, up_blocks.0.attentions.1 0.5",
    # the shape of the face as it is, its surface half from the base model
    "soft": "down 0.8, middle 1, up 0.8, up_blocks.1 0.5",
    # what users report as artefacts are wrong fine lines, around the eyes above all; the person shows in larger shapes
    "anti-artefact": "down_blocks.1 0.5, up_blocks.1 0.3",
}

_SHORT = {
    "down": "down_blocks",
    "up": "up_blocks",
    "mid": "mid_block",
    "middle": "mid_block",
    "middle_block": "mid_block",
}
_BLOCK = re.compile(
    r"(?:down_blocks|up_blocks)(?:\.\d+(?:\.attentions\.\d+)?)?|mid_block(?:\.attentions\.\d+)?", re.ASCII
)
_ENTRY = re.compile(r"(?P<block>[^\s=:]+)\s*[\s=:]\s*(?P<weight>\S+)")
_HOW = "write blocks and numbers such as: down 1, middle 1, up 0.8, up_blocks.1 = 0.5"


def parse_block_weights(text: str) -> dict[str, float]:
    """`down 1, up_blocks.1=0.5` -> block -> weight; entries are separated by commas, semicolons or lines.

    Blocks are named as diffusers does (`down_blocks.1`, `up_blocks.0.attentions.1`, `mid_block`), a side also as down,
    middle, up (and `down.1`). Raises HyperLoRAError for anything else, for a block named twice, and for NaN.
    """
    weights: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise HyperLoRAError(f"The block weight {entry!r} isn't a block and a number: {_HOW}.")
        block, weight = _block(match["block"]), _number(match["weight"], entry)
        if block in weights:
            raise HyperLoRAError(f"The block weights name {block} twice: keep one of them.")
        weights[block] = weight
    return weights


def weigh_blocks(lora: LoRA, text: str = "", preset: str = ALIKE) -> LoRA:
    """The LoRA with its up matrices scaled by block; the same object where nothing changes.

    A layer that `text` means has its weight from there, any other from `preset`, else 1. Of several entries that mean a
    layer the most detailed one counts. Raises HyperLoRAError for an unknown preset, a text that parse_block_weights
    refuses, and a block of the text in which the LoRA has no layers (a preset's is left out: it was written for all of
    SDXL).
    """
    if preset not in PRESETS:
        raise HyperLoRAError(f"Unknown block weights {preset!r}: choose one of {', '.join(PRESETS)}.")
    typed = parse_block_weights(text)
    given = typed, parse_block_weights(PRESETS[preset])
    if not any(given):
        return lora
    paths = {pair.key: diffusers_path(pair.key) for pair in pairs(lora)}
    for block in typed:
        if not any(_means(block, path) for path in paths.values()):
            there = sorted({path.partition(".attentions")[0] for path in paths.values()})
            raise HyperLoRAError(f"This LoRA has no layers in {block}: it has {', '.join(there)}.")
    factors = {key: _weight_of(path, *given) for key, path in paths.items()}
    scaled: LoRA = dict(lora)
    for key, factor in factors.items():
        if factor != 1:
            scaled[key + UP] = lora[key + UP] * factor
            if not torch.isfinite(scaled[key + UP]).all():
                raise HyperLoRAError(
                    f"The block weight {factor:g} is too large for {key} in {lora[key + UP].dtype}: most lie between 0 and 2."
                )
    return scaled


def _block(name: str) -> str:
    side, dot, rest = name.lower().partition(".")
    block = f"{_SHORT.get(side, side)}{dot}{rest}"
    if not _BLOCK.fullmatch(block):
        raise HyperLoRAError(f"{name!r} isn't a block of an SDXL UNet: {_HOW}.")
    return block


def _number(text: str, entry: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise HyperLoRAError(f"The block weight {entry!r} has no number to multiply with: {_HOW}.")
    return number


def _means(block: str, path: str) -> bool:
    return path.startswith(f"{block}.")


def _weight_of(path: str, *given: Mapping[str, float]) -> float:
    """By the first of `given` that means the layer."""
    for weights in given:
        if blocks := [block for block in weights if _means(block, path)]:
            return weights[max(blocks, key=len)]
    return 1.0
