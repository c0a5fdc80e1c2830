"""Bases in files, and the command that moves LoRAs from one to another."""

import pytest
import torch
from bad_inputs import assert_sentence
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_bases import ONE_BLOCK, lora_of, unet

from hyperlora_core import HyperLoRAError, load_lora, save_lora
from hyperlora_core.base_layers import FileLayers, TensorLayers, depths
from hyperlora_core.cli import main
from hyperlora_core.transfer import transfer

DEMO_UNET = ROOT / "models" / "demo" / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
ORIGINAL = {"down_blocks.1.attentions.0": "input_blocks.4.1", "mid_block.attentions.0": "middle_block.1",
            "up_blocks.0.attentions.2": "output_blocks.2.1", "up_blocks.1.attentions.1": "output_blocks.4.1"}  # fmt: skip


def test_layers_of_files(tmp_path):
    tensors = load_file(DEMO_UNET)
    layers = FileLayers(ROOT / "models" / "demo")
    assert layers.shapes == TensorLayers(tensors).shapes and len(layers.shapes) == 88
    path = "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0"
    assert torch.equal(layers.weight(path), tensors[f"{path}.weight"])
    # as in an original checkpoint of three levels with two ResNets each
    renamed = {
        "model.diffusion_model.input_blocks.8.0.x": torch.zeros(1),
        "cond_stage.attn1.to_q.weight": torch.zeros(1),
    }
    for name, tensor in tensors.items():
        for new, old in ORIGINAL.items():
            if name.startswith(f"{new}.transformer_blocks"):
                renamed[f"model.diffusion_model.{name.replace(new, old)}"] = tensor
    save_file(renamed, tmp_path / "model.safetensors")
    original = FileLayers(tmp_path / "model.safetensors")
    assert depths(original) == {
        "down_blocks.1": {0: 1},
        "mid_block": {0: 1},
        "up_blocks.0": {2: 1},
        "up_blocks.1": {1: 1},
    }
    assert torch.equal(original.weight(path), tensors[f"{path}.weight"])


def test_files_that_are_no_base(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    for path, words in (
        (tmp_path / "x.safetensors", "holds no attention layers"),
        (tmp_path, "holds no diffusers UNet"),
        (tmp_path / "none.safetensors", "There is no file"),
    ):
        with pytest.raises(HyperLoRAError, match=words):
            FileLayers(path)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two checkpoints of one block, and a LoRA for the first."""
    folder = tmp_path_factory.mktemp("bases")
    before = unet(ONE_BLOCK, 0, 64, 64)
    noise = unet(ONE_BLOCK, 1, 64, 64)
    save_file(before, folder / "source.safetensors")
    save_file({name: tensor + 0.1 * noise[name] for name, tensor in before.items()}, folder / "tuned.safetensors")
    for number in (1, 2):
        save_lora(
            lora_of(before, number), folder / f"person_{number}.safetensors", metadata={"hyperlora.name": str(number)}
        )
    return folder


def test_command(bases, tmp_path, capsys):
    loras = [str(bases / f"person_{number}.safetensors") for number in (1, 2)]
    models = ["--source", str(bases / "source.safetensors"), "--target", str(bases / "tuned.safetensors")]
    report = tmp_path / "report.txt"
    assert main(["transfer", *loras, *models, "-o", str(tmp_path / "out"), "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert said.count("8 of 8 layers moved") == 2 and f"Report: {report}" in said
    for number in (1, 2):
        moved = load_lora(tmp_path / "out" / f"person_{number}.safetensors")
        wanted = transfer(
            load_lora(loras[number - 1]), *(FileLayers(bases / f"{name}.safetensors") for name in ("source", "tuned"))
        )
        assert all(torch.equal(moved[name], tensor) for name, tensor in wanted.lora.items())
        with safe_open(tmp_path / "out" / f"person_{number}.safetensors", framework="pt") as file:
            metadata = file.metadata()
        assert (metadata["hyperlora.name"], metadata["hyperlora.moved_to"]) == (str(number), "tuned.safetensors")
    assert report.read_text().count("similarity") == 2 * (1 + 8)


def test_command_with_mistakes(bases, tmp_path, capsys):
    lora, out = str(bases / "person_1.safetensors"), str(tmp_path / "out.safetensors")
    models = ["--source", str(bases / "source.safetensors"), "--target", str(bases / "tuned.safetensors")]
    for arguments, words in (
        ([lora, *models, "-o", out, "--threshold", "nan"], ("nan isn't a threshold",)),
        ([lora, *models, "-o", out, "--directions", "0"], ("isn't a share",)),
        ([lora, lora, *models, "-o", out], ("2 LoRAs don't go into one file",)),
        ([lora, *models, "-o", str(bases)], ("the same file",)),
        ([lora, "--source", str(tmp_path / "no"), *models[2:], "-o", out], ("There is no file",)),
        ([lora, "--source", str(ROOT / "models" / "demo"), *models[2:], "-o", out], ("doesn't fit the source model",)),
    ):
        assert main(["transfer", *arguments]) == 2, arguments
        assert_sentence(capsys.readouterr().err, ("hyperlora transfer:", *words))
    assert not (tmp_path / "out.safetensors").exists()
