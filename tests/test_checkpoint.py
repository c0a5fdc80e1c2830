"""Checkpoints that aren't: each failure is one sentence that names the file and the remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import FIXTURES
from hyperlora_core import HyperLoRAError, load_hyperlora, save_hyperlora

PARTS = ("hyper_lora_modules.json", "hyper_lora_modules.safetensors", "resampler.safetensors", "id_projector.safetensors")


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "checkpoint"
    shutil.copytree(FIXTURES / "clip_arcface", target)
    return target


def refuses(path, *words: str):
    with pytest.raises(HyperLoRAError) as caught:
        load_hyperlora(path)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("part", PARTS)
def test_missing_part(folder, part):
    (folder / part).unlink()
    refuses(folder, part, "hyperlora download")


@pytest.mark.parametrize("part", PARTS[1:])
def test_truncated(folder, part):
    file = folder / part
    file.write_bytes(file.read_bytes()[:-100])
    refuses(folder, part, "incomplete")


@pytest.mark.parametrize("part", PARTS[1:])
def test_html_saved_as_weights(folder, part):
    (folder / part).write_text("<!DOCTYPE html><html><body>404</body></html>")
    refuses(folder, part, "web page")


def test_pickled_weights(folder):
    torch.save({"x": torch.zeros(1)}, folder / "resampler.safetensors")
    refuses(folder, "resampler", "pickled", "refused")
    torch.save({"x": torch.zeros(1)}, folder / "model.ckpt")
    refuses(folder / "model.ckpt", "pickled", "refused")


def test_empty_and_nonsense(folder, tmp_path):
    (folder / "resampler.safetensors").write_bytes(b"")
    refuses(folder, "resampler", "empty")
    (folder / "resampler.safetensors").write_bytes(b"nonsense" * 100)
    refuses(folder, "resampler", "isn't a safetensors file")
    refuses(tmp_path / "nothing", "doesn't exist")


def test_one_level_too_deep(folder):
    refuses(folder.parent, "one level deeper", str(folder))
    (folder.parent / "empty").mkdir()
    refuses(folder.parent / "empty", "hyper_lora_modules.json", "hyperlora download")


def test_a_part_instead_of_its_folder(folder):
    refuses(folder / "resampler.safetensors", "one part", str(folder))


def test_another_kind_of_file(folder):
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, folder / "some_lora.safetensors")
    refuses(folder / "some_lora.safetensors", "not a HyperLoRA checkpoint")


def test_broken_json(folder):
    for text in ("{", "[]", '{"a": 1}', "{}", '{"a": {"hidden_size": 4}}'):
        (folder / "hyper_lora_modules.json").write_text(text)
        refuses(folder, "hyper_lora_modules.json", "Download it again")


def test_mixed_checkpoints(folder):
    other = FIXTURES / "with_base"
    for part in PARTS[1:]:
        shutil.copy(other / part, folder / part)
        refuses(folder, "mixed" if part != "id_projector.safetensors" else "id_projector")
        shutil.copy(FIXTURES / "clip_arcface" / part, folder / part)
    load_hyperlora(folder)
    shutil.copy(other / "base_resampler.safetensors", folder)
    refuses(folder, "base_down_basis", "mixed")


def test_mixed_checkpoints_of_one_shape(folder, tmp_path):
    """Two trainings of one size: only the id that training writes into every part tells them apart."""
    for name in ("one", "two"):
        part = load_file(folder / "resampler.safetensors")
        part["proj_out.bias"] += 1
        save_file(part, folder / "resampler.safetensors")
        save_hyperlora(load_hyperlora(folder), tmp_path / name)
    shutil.copy(tmp_path / "one" / "resampler.safetensors", tmp_path / "two")
    refuses(tmp_path / "two", "mixes parts of different checkpoints")


def test_tensor_missing_or_misshapen(folder):
    tensors = load_file(folder / "hyper_lora_modules.safetensors")
    name = "1.to_k.id_up_basis"
    save_file({n: t for n, t in tensors.items() if n != name}, folder / "hyper_lora_modules.safetensors")
    refuses(folder, name, "mixed")
    save_file(tensors | {name: tensors[name][:, :, :5].contiguous()}, folder / "hyper_lora_modules.safetensors")
    refuses(folder, name, "doesn't fit")


def test_unknown_resampler_tensor(folder):
    tensors = load_file(folder / "resampler.safetensors")
    tensors["layers.0.surprise"] = torch.zeros(1)
    save_file(tensors, folder / "resampler.safetensors")
    refuses(folder, "resampler.safetensors", "surprise")


def test_resampler_without_latents(folder):
    tensors = load_file(folder / "resampler.safetensors")
    del tensors["latents"]
    save_file(tensors, folder / "resampler.safetensors")
    refuses(folder, "resampler.safetensors", "latents")


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


def test_the_basis_is_mapped_not_copied(folder):
    hyper = load_hyperlora(folder)
    basis = hyper.basis.tensor(0, "to_q", "id", "down")
    pages = next(line for line in open("/proc/self/maps") if "hyper_lora_modules" in line).split()[0]
    start, end = (int(number, 16) for number in pages.split("-"))
    assert start <= basis.data_ptr() < end
