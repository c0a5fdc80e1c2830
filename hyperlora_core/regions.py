"""The places of several people in one picture."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .errors import HyperLoRAError

GRID = 64  # points per side on which masks of any sizes are compared
LEAST = 0.001  # share of the picture: less is lost when the mask is scaled to the latent's size
MOST_SHARED = 0.5  # of the smaller of two masks: soft borders overlap by less, a mask used twice by all


def region_mask(mask: Tensor, others: Iterable[Tensor] = ()) -> Tensor:
    """A person's mask, checked: [h, w] or [n, h, w] of any size -> float [n, h, w] between 0 and 1.

    `others`: the masks of the people who are there already. Raises HyperLoRAError for NaN, for a mask that covers
    nothing, and for one that shares its place with another.
    """
    if mask.ndim < 2 or mask.numel() == 0:
        raise HyperLoRAError(f"This mask has the shape {list(mask.shape)}: give one of height and width.")
    mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()  # masks may come from several devices
    if not torch.isfinite(mask).all():
        raise HyperLoRAError("The mask holds NaN or infinity: draw it again, between black and white.")
    mask = mask.clamp(0, 1)
    covered = mask.mean((1, 2)).amin().item()
    if covered < LEAST:
        raise HyperLoRAError(
            f"The mask covers {covered:.2%} of the picture, so there is no place for the person: "
            "paint the place white (in Load Image (as Mask) choose channel red), or leave the mask out for the whole picture."
        )
    for other in others:
        shared = overlap(mask, other)
        if shared > MOST_SHARED:
            raise HyperLoRAError(
                f"The mask lies to {shared:.0%} on another person's, and two people in one place become a mix: "
                "give each a place of their own. To mix people on purpose use Blend Identities."
            )
    return mask


def overlap(one: Tensor, other: Tensor) -> float:
    """What two masks [n, h, w] share, of the smaller one, 0 to 1; the most of all pictures. One mask holds for all."""
    if 1 not in (len(one), len(other)):
        n = min(len(one), len(other))
        one, other = one[:n], other[:n]
    one, other = (interpolate(mask[:, None], (GRID, GRID), mode="area") for mask in (one, other))
    shared = torch.minimum(one, other).sum((1, 2, 3))  # (n)
    smaller = torch.minimum(one.sum((1, 2, 3)), other.sum((1, 2, 3)))
    return (shared / smaller).amax().item()
