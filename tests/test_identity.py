"""Identities: saved, loaded, blended, weighted, and refused where they don't belong."""

import json

import pytest
import torch
from places import FIXTURES
from safetensors.torch import load_file, save_file

from hyperlora_core import HyperLoRAError, Identity, load_hyperlora

CASE = FIXTURES / "clip_arcface_three_photos"


@pytest.fixture(scope="module")
def hyper():
    return load_hyperlora(CASE)


@pytest.fixture(scope="module")
def inputs():
    expected = load_file(CASE / "expected.safetensors")
    return {"clip_tokens": expected["in.clip_tokens"], "id_embeds": expected["in.id_embeds"]}


def person(seed: int, fingerprint: str = "abc", base: bool = True) -> Identity:
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(48, 16, generator=generator)
    return Identity(coefficients, coefficients * 2 if base else None, fingerprint, "small", photo_count=seed + 1)


def test_save_and_load(tmp_path):
    before = person(1)
    before.save(tmp_path / "anna.safetensors")
    after = Identity.load(tmp_path / "anna.safetensors")
    assert torch.allclose(after.coefficients, before.coefficients, atol=2e-3)
    assert torch.allclose(after.base_coefficients, before.base_coefficients, atol=4e-3)
    assert (after.fingerprint, after.checkpoint, after.photo_count) == ("abc", "small", 2)


def test_sdxl_identity_is_under_300_kb(tmp_path):
    Identity(torch.randn(1120, 128)).save(tmp_path / "person.safetensors")
    assert (tmp_path / "person.safetensors").stat().st_size < 300_000


def test_blend_is_linear_and_scaled():
    a, b = person(0), person(1)
    blend = Identity.blend([(a, 3), (b, 1)])
    assert torch.allclose(blend.coefficients, 0.75 * a.coefficients + 0.25 * b.coefficients, atol=1e-6)
    assert torch.allclose(blend.base_coefficients, 0.75 * a.base_coefficients + 0.25 * b.base_coefficients, atol=1e-6)
    assert blend.photo_count == 3
    assert torch.equal(Identity.blend([(a, 0.3)]).coefficients, a.coefficients)


def test_blend_without_a_base_branch():
    assert Identity.blend([(person(0), 1), (person(1, base=False), 1)]).base_coefficients is None


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (float("nan"), 1), (float("inf"), 1), (-1, -1)])
def test_blend_refuses_weights_without_a_mean(weights):
    with pytest.raises(HyperLoRAError, match="weights"):
        Identity.blend(zip((person(0), person(1)), weights, strict=True))


def test_blend_refuses_other_checkpoints_and_nothing():
    with pytest.raises(HyperLoRAError, match="different checkpoints"):
        Identity.blend([(person(0), 1), (person(1, "other"), 1)])
    with pytest.raises(HyperLoRAError, match="nothing to blend"):
        Identity.blend([])


def test_identity_of_another_checkpoint_is_refused(hyper):
    with pytest.raises(HyperLoRAError, match=f"not with {hyper.name}"):
        person(0).require_checkpoint(hyper)
    with pytest.raises(HyperLoRAError, match="belong to another checkpoint"):
        hyper.lora(torch.randn(8, 16))


def test_loading_something_else(tmp_path):
    save_file({"id": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(HyperLoRAError, match="not an identity"):
        Identity.load(tmp_path / "x.safetensors")
    save_file({"id": torch.zeros(2)}, tmp_path / "y.safetensors", {"format": "hyperlora.identity", "version": "9"})
    with pytest.raises(HyperLoRAError, match="format version 9"):
        Identity.load(tmp_path / "y.safetensors")
    with pytest.raises(HyperLoRAError, match="doesn't exist"):
        Identity.load(tmp_path / "none.safetensors")
    marks = {"format": "hyperlora.identity", "version": "1"}
    origin = {"fingerprint": "f", "checkpoint": "c", "photo_count": 1}
    for given, told in (
        ({"id": torch.zeros(2)}, marks),
        ({"id": torch.zeros(2)}, marks | {"provenance": "no JSON"}),
        ({"id": torch.zeros(2)}, marks | {"provenance": json.dumps({"fingerprint": "f"})}),
        ({"other": torch.zeros(2)}, marks | {"provenance": json.dumps(origin)}),
    ):
        save_file(given, tmp_path / "z.safetensors", told)
        with pytest.raises(HyperLoRAError, match=r"doesn't say which checkpoint|holds no coefficients"):
            Identity.load(tmp_path / "z.safetensors")
    more = marks | {"provenance": json.dumps(origin | {"of a later version": 1})}
    save_file({"id": torch.zeros(2)}, tmp_path / "z.safetensors", more)
    assert Identity.load(tmp_path / "z.safetensors").fingerprint == "f"
    person(0).save(tmp_path / "nan.safetensors")
    broken = Identity(torch.full((48, 16), float("nan")))
    broken.save(tmp_path / "nan.safetensors")
    with pytest.raises(HyperLoRAError, match="NaN"):
        Identity.load(tmp_path / "nan.safetensors")


def test_photo_weights(hyper, inputs):
    def alone(i):
        return hyper.coefficients(
            clip_tokens=inputs["clip_tokens"][i : i + 1], id_embeds=inputs["id_embeds"][i : i + 1]
        )

    assert torch.allclose(hyper.coefficients(**inputs, weights=[0, 5, 0]), alone(1), atol=1e-6)
    assert torch.allclose(hyper.coefficients(**inputs, weights=[2, 2, 2]), hyper.coefficients(**inputs), atol=1e-6)
    mixed = hyper.coefficients(**inputs, weights=torch.tensor([1.0, 1.0, 0.0]))
    assert not torch.allclose(mixed, hyper.coefficients(**inputs), atol=1e-3)
    assert torch.allclose(mixed.norm(dim=-1), torch.ones(len(mixed)), atol=1e-4)


@pytest.mark.parametrize("weights", [[1, 1], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1], [3e38, 3e38, 0]])
def test_photo_weights_that_dont_fit(hyper, inputs, weights):
    with pytest.raises(HyperLoRAError, match="don't fit 3 photo"):
        hyper.coefficients(**inputs, weights=weights)


def test_conditions_that_dont_fit(hyper, inputs):
    tokens, embeds = inputs["clip_tokens"], inputs["id_embeds"]
    with pytest.raises(HyperLoRAError, match="needs face embeddings"):
        hyper.coefficients(clip_tokens=tokens)
    with pytest.raises(HyperLoRAError, match="needs CLIP tokens"):
        hyper.coefficients(id_embeds=embeds)
    with pytest.raises(HyperLoRAError, match=r"id_embeds is \[3, 100\]"):
        hyper.coefficients(clip_tokens=tokens, id_embeds=embeds[:, :100])
    with pytest.raises(HyperLoRAError, match=r"clip_tokens is \[3, 10, 16\]"):
        hyper.coefficients(clip_tokens=tokens[..., :16], id_embeds=embeds)
    with pytest.raises(HyperLoRAError, match="3 photos in clip_tokens, but 2 in id_embeds"):
        hyper.coefficients(clip_tokens=tokens, id_embeds=embeds[:2])
    with pytest.raises(HyperLoRAError, match="NaN"):
        hyper.coefficients(clip_tokens=tokens * float("nan"), id_embeds=embeds)
    with pytest.raises(HyperLoRAError, match=r"id_embeds is \[0, 512\]"):
        hyper.coefficients(clip_tokens=tokens[:0], id_embeds=embeds[:0])
    with pytest.raises(HyperLoRAError, match="no base branch"):
        hyper.coefficients(clip_tokens=tokens, branch="base")
    with pytest.raises(HyperLoRAError, match="Unknown branch"):
        hyper.lora(torch.zeros(48, 16), branch="face")


def test_nan_coefficients(hyper):
    with pytest.raises(HyperLoRAError, match="NaN"):
        hyper.lora(torch.full((48, 16), float("nan")))
