"""Sliders: the difference of two LoRAs, exactly, and refused where it would mean nothing."""

from dataclasses import replace

import pytest
import torch
from places import FIXTURES

from hyperlora_core import HyperLoRAError, Identity, load_hyperlora
from hyperlora_core.lora import pairs
from hyperlora_core.slider import slider_lora


@pytest.fixture(scope="module")
def hyper():
    return load_hyperlora(FIXTURES / "with_base")


@pytest.fixture(scope="module")
def ends(hyper):
    shape = (8 * len(hyper.module_names), hyper.basis.size)

    def identity(seed: int) -> Identity:
        generator = torch.Generator().manual_seed(seed)
        return Identity(
            *(torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(2)),
            hyper.fingerprint,
            hyper.name,
        )

    return identity(1), identity(2)


def changes(lora: dict) -> dict[str, torch.Tensor]:
    """What the LoRA adds to each weight at weight 1."""
    return {pair.key: pair.scale * (pair.up.double() @ pair.down.double()) for pair in pairs(lora)}


@pytest.mark.parametrize("branch", ["id", "base"])
@pytest.mark.parametrize("amount", [-1.5, 0.7])
def test_it_is_the_difference_of_the_loras(hyper, ends, branch, amount):
    field = "coefficients" if branch == "id" else "base_coefficients"
    start, end = (changes(hyper.lora(getattr(identity, field), branch)) for identity in ends)
    slider = slider_lora(hyper, *ends, amount, branch)
    found = changes(slider)
    assert found.keys() == start.keys()
    for key, change in found.items():
        torch.testing.assert_close(change, amount * (end[key] - start[key]), rtol=1e-4, atol=1e-5)
    first = next(pairs(slider))
    assert first.down.shape[0] == 2 * hyper.basis.rank(branch)


def test_amounts_mirror_each_other_and_zero_is_off(hyper, ends):
    there, back = (changes(slider_lora(hyper, *ends, amount)) for amount in (1.2, -1.2))
    assert all(torch.allclose(there[key], -back[key]) for key in there)
    assert not any(change.any() for change in changes(slider_lora(hyper, *ends, 0)).values())
    assert any(change.any() for change in there.values())


@pytest.mark.parametrize(("branch", "other"), [("id", "base"), ("base", "id")])
def test_a_branch_in_which_the_ends_are_alike_changes_nothing(hyper, ends, branch, other):
    """As of one photo encoded with and without colour: only what the ID branch sees differs."""
    field = "coefficients" if branch == "id" else "base_coefficients"
    end = replace(ends[1], **{field: getattr(ends[0], field)})
    still, moving = (changes(slider_lora(hyper, ends[0], end, 0.7, one)) for one in (branch, other))
    assert max(change.abs().max() for change in still.values()) < 1e-5 < min(c.abs().max() for c in moving.values())


def test_a_difference_of_coefficients_would_have_no_direction(hyper, ends):
    """Why the slider isn't `hyper.lora(end - start)`."""
    difference = ends[1].coefficients - ends[0].coefficients
    there, back = (changes(hyper.lora(sign * difference)) for sign in (1, -1))
    assert all(torch.allclose(there[key], back[key]) for key in there)


def test_what_no_slider_can_be_made_of(hyper, ends):
    start, end = ends
    with pytest.raises(HyperLoRAError, match=r"another checkpoint.*not with"):
        slider_lora(hyper, start, replace(end, fingerprint="else", checkpoint=""))
    same = replace(start, coefficients=start.coefficients.clone())
    for branch in ("id", "base"):
        with pytest.raises(HyperLoRAError, match="Both ends of the slider are the same identity"):
            slider_lora(hyper, start, same, branch=branch)
    with pytest.raises(HyperLoRAError, match="can't be moved by nan"):
        slider_lora(hyper, start, end, float("nan"))
    with pytest.raises(HyperLoRAError, match="encoded without a base branch"):
        slider_lora(hyper, start, replace(end, base_coefficients=None), branch="base")
    plain = load_hyperlora(FIXTURES / "clip_arcface")
    with pytest.raises(HyperLoRAError, match="no base branch"):
        slider_lora(plain, *(Identity(torch.zeros(1), None, plain.fingerprint) for _ in range(2)), branch="base")
