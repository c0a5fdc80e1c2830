"""Masks of people: any size, some room, not the same place twice."""

import math

import pytest
import torch
from bad_inputs import assert_sentence

from hyperlora_core import HyperLoRAError
from hyperlora_core.regions import overlap, region_mask


def box(left: float, right: float, width: int = 96, height: int = 64) -> torch.Tensor:
    """A mask that is white between two shares of the width."""
    mask = torch.zeros(height, width)
    mask[:, round(left * width) : round(right * width)] = 1
    return mask


@pytest.mark.parametrize("shape", [(64, 96), (1, 64, 96), (3, 64, 96), (3, 1, 64, 96)])
def test_shapes(shape):
    mask = region_mask(box(0, 0.5).expand(shape))
    assert mask.shape == (shape[0] if len(shape) > 2 else 1, 64, 96)
    assert mask.dtype == torch.float32


def test_values():
    mask = region_mask(torch.tensor([[-1.0, 0.25], [2.0, 1.0]]))
    assert mask.tolist() == [[[0, 0.25], [1, 1]]]


def test_neighbours_of_other_sizes():
    """Side by side, with a soft border, in masks of different sizes."""
    left, right = box(0, 0.55), box(0.45, 1, width=640, height=480)
    assert region_mask(right, [region_mask(left)]).shape == (1, 480, 640)
    assert overlap(region_mask(left), region_mask(right)) == pytest.approx(0.1 / 0.55, abs=0.03)


def test_each_picture_of_a_batch_counts_for_itself():
    """In the first picture Anna is left and Ben right, in the second the other way round."""
    anna, ben = (torch.stack(sides) for sides in ((box(0, 0.5), box(0.5, 1)), (box(0.5, 1), box(0, 0.5))))
    assert overlap(region_mask(anna), region_mask(ben)) == 0
    assert overlap(region_mask(anna), region_mask(anna)) == 1
    one_for_all = region_mask(box(0.5, 1))
    assert overlap(region_mask(anna), one_for_all) == overlap(one_for_all, region_mask(anna)) == 1
    assert overlap(region_mask(anna[:1]), one_for_all) == 0
    assert overlap(region_mask(anna), region_mask(ben[[0, 1, 0]])) == 0


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(64, 64), ["covers 0.00%", "paint the place white"]),
        (torch.stack([box(0, 0.5), torch.zeros(64, 96)]), ["covers 0.00%"]),
        (torch.full((64, 64), 0.0005), ["covers 0.05%"]),
        (torch.full((64, 64), math.nan), ["NaN"]),
        (torch.full((64, 64), math.inf), ["infinity"]),
        (torch.zeros(0, 64), ["shape [0, 64]"]),
        (torch.ones(64), ["shape [64]"]),
    ],
)
def test_no_place(mask, words):
    with pytest.raises(HyperLoRAError) as error:
        region_mask(mask)
    assert_sentence(str(error.value), words)


@pytest.mark.parametrize("mask", [box(0, 0.5), box(0.1, 0.4), box(0, 1), box(0.2, 0.7)])
def test_one_place_for_two(mask):
    with pytest.raises(HyperLoRAError) as error:
        region_mask(mask, [region_mask(box(0.6, 1)), region_mask(box(0, 0.5))])
    assert_sentence(str(error.value), ["on another person's", "Blend Identities"])
