"""Sliders: the direction from one identity to another, as a LoRA to put beside a person's own.

The difference is taken between the LoRAs, as the paper does when it applies one at -0.7 and the other at +0.7
(arXiv 2503.16944): amount * (up_b @ down_b - up_a @ down_a), exactly, at the sum of the two ranks.

The difference of the coefficients would be wrong. A LoRA is a product of two mixes, so that coefficients c_b - c_a give
(up_b - up_a) @ (down_b - down_a): the same for -1 as for +1, and small of second order where the two are alike.
"""

import math

import torch
from torch import Tensor

from .basis import LoRA
from .errors import HyperLoRAError
from .hyperlora import HyperLoRA
from .identity import Identity
from .lora import merge_branches

AMOUNT = 0.7  # the paper's


def slider_lora(hyper: HyperLoRA, start: Identity, end: Identity, amount: float = AMOUNT, branch: str = "id") -> LoRA:
    """From `start` (negative amounts) to `end` (positive ones), two identities that differ in what the slider changes.

    Returns a LoRA of rank 2 r that at weight 1 is `amount` times end's LoRA minus start's, and changes nothing where only
    their other branches differ. Raises HyperLoRAError for identities of another checkpoint, two that are the same, an amount
    that isn't finite, or a branch that isn't there.
    """
    if not math.isfinite(amount):
        raise HyperLoRAError(f"A slider can't be moved by {amount}: use a number such as {AMOUNT}.")
    ends = []
    for identity in (start, end):
        identity.require_checkpoint(hyper)
        coefficients = identity.coefficients if branch == "id" else identity.base_coefficients
        if coefficients is None and hyper.has_base:
            raise HyperLoRAError(
                f"An identity of this slider was encoded without a base branch, which {hyper.name} has: "
                "encode its photo again."
            )
        ends.append(coefficients)
    if (
        ends[0] is not None
        and torch.equal(start.coefficients, end.coefficients)
        and _same(start.base_coefficients, end.base_coefficients)
    ):
        raise HyperLoRAError(
            "Both ends of the slider are the same identity, so it would change nothing: encode two photos that differ in "
            "one thing, such as with and without a smile."
        )
    return merge_branches(hyper.lora(ends[1], branch), hyper.lora(ends[0], branch), amount, -amount)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is None or other is None or torch.equal(one, other)
