"""Checkpoints that aren't: each failure is one sentence that names the file and the remedy."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bad_inputs import CHECKPOINTS, GOOD, assert_sentence, bad_checkpoint
from safetensors.torch import load_file, save_file

from hyperlora_core import HyperLoRAError, load_hyperlora, save_hyperlora


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "checkpoint"
    shutil.copytree(GOOD, target)
    return target


def refuses(path, *words: str):
    with pytest.raises(HyperLoRAError) as caught:
        load_hyperlora(path)
    assert_sentence(str(caught.value), words)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoint(name, tmp_path):
    refuses(tmp_path / "bad", *bad_checkpoint(name, tmp_path / "bad"))


def test_a_pickled_single_file(folder):
    torch.save({"x": torch.zeros(1)}, folder / "model.ckpt")
    refuses(folder / "model.ckpt", "pickled", "refused")


def test_one_level_too_deep(folder):
    refuses(folder.parent, "one level deeper", str(folder))
    (folder.parent / "empty").mkdir()
    refuses(folder.parent / "empty", "hyper_lora_modules.json", "download")


def test_a_part_instead_of_its_folder(folder):
    refuses(folder / "resampler.safetensors", "one part", str(folder))


def test_another_kind_of_file(folder):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, folder / "some_lora.safetensors")
    refuses(folder / "some_lora.safetensors", "not a HyperLoRA checkpoint")


def test_mixed_checkpoints_of_one_shape(folder, tmp_path):
    """Two trainings of one size: only the id that training writes into every part tells them apart."""
    for name in ("one", "two"):
        part = load_file(folder / "resampler.safetensors")
        part["proj_out.bias"] += 1
        save_file(part, folder / "resampler.safetensors")
        save_hyperlora(load_hyperlora(folder), tmp_path / name)
    shutil.copy(tmp_path / "one" / "resampler.safetensors", tmp_path / "two")
    refuses(tmp_path / "two", "mixes parts of different checkpoints")


def test_nan_weights(folder):
    tensors = load_file(folder / "resampler.safetensors")
    tensors["proj_out.weight"] *= float("nan")
    save_file(tensors, folder / "resampler.safetensors")
    hyper = load_hyperlora(folder)
    with pytest.raises(HyperLoRAError, match="gives NaN"):
        hyper.coefficients(clip_tokens=torch.randn(1, 10, 32), id_embeds=torch.randn(1, 512))


def test_everything_is_inferred(golden):
    hyper = load_hyperlora(golden)
    names = json.loads((golden / "hyper_lora_modules.json").read_text())
    assert hyper.module_names == tuple(names)
    assert hyper.has_base == (golden / "base_resampler.safetensors").exists()
    assert hyper.uses_clip_tokens and hyper.uses_id_embeds


def test_fingerprints_differ(folder):
    before = load_hyperlora(folder).fingerprint
    tensors = load_file(folder / "hyper_lora_modules.safetensors")
    tensors["2.to_q.id_up_basis"][0, 0, 0] += 1
    save_file(tensors, folder / "hyper_lora_modules.safetensors")
    assert load_hyperlora(folder).fingerprint != before


@pytest.mark.parametrize("condition", ["clip", "id"])
def test_checkpoints_with_one_condition(folder, condition):
    """Stage 2 of the training has CLIP tokens only; an embedding-only network has no second condition either."""
    tensors = load_file(folder / "resampler.safetensors")
    tensors = {n: t for n, t in tensors.items() if "attn3" not in n and "proj_in_2" not in n}
    save_file(tensors, folder / "resampler.safetensors")
    if condition == "clip":
        (folder / "id_projector.safetensors").unlink()
    hyper = load_hyperlora(folder)
    inputs = {"clip_tokens": torch.randn(1, 10, 32)} if condition == "clip" else {"id_embeds": torch.randn(1, 512)}
    assert hyper.coefficients(**inputs).shape == (48, 16)
    assert hyper.clip_width == (32 if condition == "clip" else None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_basis_is_mapped_not_copied(folder):
    hyper = load_hyperlora(folder)
    basis = hyper.basis.tensor(0, "to_q", "id", "down")
    lines = Path("/proc/self/maps").read_text().splitlines()
    pages = next(line for line in lines if "hyper_lora_modules" in line).split()[0]
    start, end = (int(number, 16) for number in pages.split("-"))
    assert start <= basis.data_ptr() < end
