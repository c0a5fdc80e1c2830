"""Which transformer block of one UNet is which of another, where one of the two was made by taking blocks out.

Names don't tell: what remains is numbered anew, and who pruned SDXL to SSD-1B (arXiv 2401.02677) or KOALA (arXiv
2312.04005) didn't publish which numbers stayed in every case. The weights do: blocks are never reordered, and training
after pruning leaves them more like those that they were than like any other.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from .base_layers import BaseLayers, block_path, depths, place

Read = Callable[[BaseLayers, str], Tensor]  # a layer's weight, checked, fp32, on the device that compares


def match_blocks(source: BaseLayers, target: BaseLayers, read: Read) -> dict[str, str]:
    """The target's transformer blocks by the source's, e.g. `down_blocks.2.attentions.0.transformer_blocks.6` ->
    `down_blocks.2.attentions.0.transformer_blocks.3`.

    Stacks of attentions, and blocks in a stack, are the same by number where there are as many. Where there are fewer on
    one side they are those, in order, whose weights are most alike (cosine), unless the widths differ: then none.
    """
    matched: dict[str, str] = {}
    before, after = depths(source), depths(target)
    for level in before.keys() & after.keys():
        for stack, other in _stacks(source, target, level, before[level], after[level], read):
            numbers = _blocks(source, target, level, (stack, before[level][stack]), (other, after[level][other]), read)
            matched |= {block_path(level, stack, one): block_path(level, other, two) for one, two in numbers}
    return matched


def in_order(scores: Tensor) -> list[tuple[int, int]]:
    """scores [n, m] -> pairs (row, column), rising in both and as many as there can be, with the largest sum."""
    rows, columns = scores.shape
    if rows > columns:
        return [(row, column) for column, row in in_order(scores.T)]
    picked = max(combinations(range(columns), rows), key=lambda picks: float(scores[range(rows), picks].sum()))
    return list(enumerate(picked))


def _stacks(source, target, level: str, before: dict[int, int], after: dict[int, int], read: Read) -> Iterator:
    if len(before) == len(after):
        return zip(before, after, strict=True)
    scores = torch.full((len(before), len(after)), -1.0)
    for row, one in enumerate(before.items()):
        for column, two in enumerate(after.items()):
            alike = _alike(source, target, level, one, two, read)
            if alike is not None:
                scores[row, column] = sum(alike[pair] for pair in in_order(alike)) / min(alike.shape)
    stacks, others = list(before), list(after)
    return ((stacks[row], others[column]) for row, column in in_order(scores))


def _blocks(
    source, target, level: str, one: tuple[int, int], two: tuple[int, int], read: Read
) -> list[tuple[int, int]]:
    if one[1] == two[1]:
        return [(number, number) for number in range(one[1])]
    alike = _alike(source, target, level, one, two, read)
    return [] if alike is None else in_order(alike)


def _alike(source, target, level: str, one: tuple[int, int], two: tuple[int, int], read: Read) -> Tensor | None:
    """Mean cosine of the weights of each block of one stack (its number, its depth) with each of the other: [n, m]."""
    first = block_path(level, one[0], 0)
    linears = [place(path)[3] for path in source.shapes if path.startswith(f"{first}.")]
    total, count = torch.zeros(one[1], two[1]), 0
    for linear in linears:
        sides = []
        for layers, (stack, depth) in ((source, one), (target, two)):
            paths = [f"{block_path(level, stack, block)}.{linear}" for block in range(depth)]
            shapes = {layers.shapes.get(path) for path in paths}
            if len(shapes) != 1 or None in shapes:
                return None
            weights = torch.stack([read(layers, path).flatten() for path in paths])  # (depth, out * in)
            sides.append(torch.nn.functional.normalize(weights, dim=1))
        if sides[0].shape[1] != sides[1].shape[1]:
            return None
        total += (sides[0] @ sides[1].T).cpu()
        count += 1
    return total / count if count else None
