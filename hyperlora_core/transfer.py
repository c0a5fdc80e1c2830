"""A LoRA moved to another base model without training: LoRA-X (Farhadzadeh et al. 2025, arXiv 2501.16559).

    dW_t = U_t U_t^T dW_s V_t V_t^T         same width: what lies in the target weight's leading subspaces
    dW_t = P_U dW_s P_V^T,  P_U = U_t U_s^T   another width: P = argmin ||P U_s - U_t||_F, the least squares of full row

U, V: leading singular vectors of the weight W = U S V^T of a layer. dW is never built: the up matrix passes on the left,
the down matrix on the right. Only layers whose leading subspaces are alike in both models are moved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .base_layers import BaseLayers, block_path, layout_name, place
from .basis import LoRA
from .errors import HyperLoRAError
from .lora import ALPHA, DOWN, UP, Pair, check_fits, diffusers_path, pairs
from .pruned import match_blocks
from .subspace import Leading, leading, overlap

THRESHOLD = 0.5
# Share of a layer's singular vectors that carry the change. LoRA-X's rank 320 is 0.25 to 0.5 of SDXL's; LoRAs that weren't
# made within so few lose by it (docs/controls.md, measured on the demo).
DIRECTIONS = 1.0
# Similarity is judged by fewer, so that it stays telling: of unrelated weights it is about this share.
COMPARED = 0.125

Progress = Callable[[int, int], None]


class Side(NamedTuple):
    """A passage from vectors of the source's width to vectors of the target's: y = onto (from^T x)."""

    onto: Tensor  # [target width, r]
    from_: Tensor  # [source width, r]


class Passage(NamedTuple):
    """How a layer's change gets across; a side that is None stays as it is."""

    similarity: float | None  # of the less alike side; None where both widths differ
    left: Side | None
    right: Side | None


@dataclass
class Bridge:
    """What was found out about two models, to be used again for the next LoRA between the same two.

    With `directions` below 1 in half precision on the CPU: for two SDXL models about 0.45 GB for each eighth.
    Raises HyperLoRAError unless `directions` lies above 0 and up to 1.
    """

    directions: float = DIRECTIONS
    blocks: dict[str, str] | None = None  # source's transformer block -> target's
    passages: dict[tuple[str, str], Passage] = field(default_factory=dict)  # by the paths in source and target

    def __post_init__(self):
        if not 0 < self.directions <= 1:
            raise HyperLoRAError(f"{self.directions} isn't a share of directions: use a number above 0 and up to 1.")


class MovedLayer(NamedTuple):
    """What became of a layer of the LoRA."""

    source: str  # diffusers path
    target: str | None  # None: the target has no such layer
    similarity: float | None  # None where the widths differ, or without a target
    kept: float | None  # ||dW_t|| / ||dW_s||; None: left out


class Moved(NamedTuple):
    """The LoRA for the target, and what became of each layer, in the order of the LoRA that was moved."""

    lora: LoRA
    layers: list[MovedLayer]
    names: tuple[str, str]
    threshold: float

    @property
    def summary(self) -> str:
        """A sentence."""
        moved = [layer for layer in self.layers if layer.kept is not None]
        alike = [layer.similarity for layer in moved if layer.similarity is not None]
        words = f"{len(moved)} of {len(self.layers)} layers moved from {self.names[0]} to {self.names[1]}"
        if alike:
            words += f", similarity {sum(alike) / len(alike):.2f} on average ({min(alike):.2f} to {max(alike):.2f})"
        return f"{words}, {sum(layer.kept for layer in moved) / len(moved):.0%} of a layer's change kept on average."

    @property
    def left_out(self) -> list[str]:
        """A line for each transformer block that the target lacks, and for each layer below the threshold."""
        lacking = dict.fromkeys(layer.source.rpartition(".attn")[0] for layer in self.layers if layer.target is None)
        return [f"{block}: left out, the target has no such block" for block in lacking] + [
            f"{layer.target}: left out, similarity {layer.similarity:.2f} is below {self.threshold:.2f}"
            for layer in self.layers
            if layer.target is not None and layer.kept is None
        ]

    @property
    def report(self) -> str:
        """The summary, what was left out, then a line for each layer that was moved."""
        lines = [self.summary, *self.left_out]
        for layer in self.layers:
            if layer.kept is not None:
                alike = "width differs" if layer.similarity is None else f"similarity {layer.similarity:.2f}"
                renamed = "" if layer.source == layer.target else f", from {layer.source}"
                lines.append(f"{layer.target}: {alike}, {layer.kept:.0%} kept{renamed}")
        return "\n".join(lines)


@torch.no_grad()
def transfer(
    lora: Mapping[str, Tensor],
    source: BaseLayers,
    target: BaseLayers,
    threshold: float = THRESHOLD,
    bridge: Bridge | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Moved:
    """Move a LoRA that was made for `source` to `target`. `bridge`: of an earlier move between the same two models.

    It computes on `device` and returns pairs on the CPU, in their precision, rank and alpha, under diffusers' names.
    `progress(layers done, layers)` may raise to stop; what the bridge has learned by then it keeps.
    Raises HyperLoRAError for a LoRA that doesn't fit the source, NaN in the LoRA or a weight, a threshold that isn't one,
    models without a layer in common, and when no layer reaches the threshold.
    """
    if not 0 <= threshold <= 1:  # also NaN
        raise HyperLoRAError(
            f"{threshold} isn't a threshold of similarity: use a number from 0 to 1, such as {THRESHOLD}."
        )
    bridge = Bridge() if bridge is None else bridge
    tell = progress or (lambda _done, _total: None)
    from_lora = {pair.key: (diffusers_path(pair.key), pair) for pair in pairs(lora)}
    shapes = {key: source.shapes[path] for key, (path, _) in from_lora.items() if path in source.shapes}
    check_fits(lora, shapes, "the source model")

    def read(layers: BaseLayers, path: str) -> Tensor:
        tell(done, len(from_lora))
        return _weight(layers, path, "source" if layers is source else "target", device)

    done = 0
    if bridge.blocks is None:
        bridge.blocks = match_blocks(source, target, read)
    moved: LoRA = {}
    layers: list[MovedLayer] = []
    for done, (path, pair) in enumerate(from_lora.values()):
        tell(done, len(from_lora))
        there = _counterpart(path, bridge.blocks)
        if there not in target.shapes:
            layers.append(MovedLayer(path, None, None, None))
            continue
        if (path, there) not in bridge.passages:
            weights = read(source, path), read(target, there)
            bridge.passages[path, there] = _passage(*weights, bridge.directions)
        passage = bridge.passages[path, there]
        kept = None
        if passage.similarity is None or passage.similarity >= threshold:
            changed = Pair(
                pair.key, _across(passage.right, pair.down.T, device).T, _across(passage.left, pair.up, device), 1
            )
            key = f"lora_unet_{there.replace('.', '_')}"
            moved[key + DOWN], moved[key + UP] = changed.down.contiguous(), changed.up.contiguous()
            moved[key + ALPHA] = torch.tensor(pair.scale * len(pair.down))
            whole = _size(pair)
            kept = _size(changed) / whole if whole else 1.0
        layers.append(MovedLayer(path, there, passage.similarity, kept))
    tell(len(from_lora), len(from_lora))
    if not moved:
        _nothing_moved(layers, threshold)
    return Moved(moved, layers, (_name(source, "the source"), _name(target, "the target")), threshold)


def _nothing_moved(layers: list[MovedLayer], threshold: float) -> None:
    alike = [layer.similarity for layer in layers if layer.similarity is not None]
    if alike:
        raise HyperLoRAError(
            f"No layer of the two models is alike enough for this LoRA: the highest similarity is {max(alike):.2f}, the "
            f"threshold {threshold:.2f}. Lower the threshold, or choose a target that was made from the source."
        )
    raise HyperLoRAError(
        "The target model has no attention layer in common with the source: choose an SDXL model, whole or pruned."
    )


def _counterpart(path: str, blocks: Mapping[str, str]) -> str | None:
    level, stack, block, linear = place(path)
    there = blocks.get(block_path(level, stack, block))
    return there and f"{there}.{linear}"


def _passage(source: Tensor, target: Tensor, directions: float) -> Passage:
    """Of a layer whose weights are `source` [out_s, in_s] and `target` [out_t, in_t]."""
    smaller = min(*source.shape, *target.shape)
    count, compared = (max(1, round(share * smaller)) for share in (directions, COMPARED))
    same = [one == two for one, two in zip(source.shape, target.shape, strict=True)]
    similarity = None
    if any(same):
        sides = zip(leading(source, compared), leading(target, compared), strict=True)
        similarity = min(overlap(*side) for side, comparable in zip(sides, same, strict=True) if comparable)
    if all(same) and directions == 1:
        return Passage(similarity, None, None)  # nothing to project
    there = leading(target, count)
    here = there if all(same) else leading(source, count)
    if any(same) and not all(same):
        # singular vectors come in pairs of any sign: the comparable side tells which
        left = there.left if same[0] else there.right
        signs = ((here.left if same[0] else here.right) * left).sum(0)
        there = Leading(*(vectors * torch.where(signs < 0, -1.0, 1.0) for vectors in there))
    made = []
    for onto, from_, comparable in zip(there, here, same, strict=True):
        onto = onto.to("cpu", torch.float16)
        made.append(Side(onto, onto if comparable else from_.to("cpu", torch.float16)))
    return Passage(similarity, *made)


def _across(side: Side | None, vectors: Tensor, device: str | torch.device) -> Tensor:
    """vectors [source width, n] -> new ones [target width, n], on the CPU, in their precision."""
    if side is None:
        return vectors.to("cpu", copy=True)
    onto, from_ = (matrix.to(device, torch.float32) for matrix in side)
    return (onto @ (from_.T @ vectors.to(onto))).to("cpu", vectors.dtype)


def _size(pair: Pair) -> float:
    """||up @ down||_F, without the product."""
    up, down = pair.up.float().cpu(), pair.down.float().cpu()
    return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0).sqrt())


def _weight(layers: BaseLayers, path: str, which: str, device: str | torch.device) -> Tensor:
    weight = layers.weight(path)
    if tuple(weight.shape) != tuple(layers.shapes[path]) or not weight.is_floating_point():
        raise HyperLoRAError(
            f"The {which} model's {path} is stored in a packed form: load that model unquantised to move a LoRA."
        )
    weight = weight.to(device, torch.float32)
    if not torch.isfinite(weight).all():
        raise HyperLoRAError(f"The {which} model's {path} holds NaN or infinity: download that model again.")
    return weight


def _name(layers: BaseLayers, otherwise: str) -> str:
    return layout_name(layers) or otherwise
