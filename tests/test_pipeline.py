"""The diffusers side on the demo's model: loading, LoRAs whose effect is the formula's, pictures."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperlora_core import HyperLoRAError
from hyperlora_core.demo import hyperlora, sdxl
from hyperlora_core.pipeline import apply_lora, load_pipeline, remove_lora, render

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
KEY = "lora_unet_" + LAYER.replace(".", "_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    sdxl.save_models(folder / "sdxl", sdxl.DEMO, sdxl.random_models(sdxl.DEMO))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_pipeline(folder)


@pytest.fixture
def pipeline(loaded):
    yield loaded
    remove_lora(loaded)


def random_lora(rank: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, (hidden, context) in hyperlora.unet_modules(sdxl.unet_config(sdxl.DEMO)).items():
        for linear in ("to_q", "to_k", "to_v", "to_out_0"):
            inputs = context or hidden if linear in ("to_k", "to_v") else hidden
            lora[f"{name}_{linear}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            lora[f"{name}_{linear}.lora_up.weight"] = torch.randn(hidden, rank, generator=generator) * rank**-0.5
            lora[f"{name}_{linear}.alpha"] = torch.tensor(rank / 2)
    return lora


def change(lora: dict, x: torch.Tensor, weight: float) -> torch.Tensor:
    down, up = lora[f"{KEY}.lora_down.weight"], lora[f"{KEY}.lora_up.weight"]
    return weight * float(lora[f"{KEY}.alpha"]) / len(down) * x @ down.T @ up.T


def paint(pipeline, **options) -> np.ndarray:
    return np.asarray(render(pipeline, "portrait of a man", steps=2, **options)).astype(float)


@torch.no_grad()
def test_effect_is_the_formulas(pipeline):
    x = torch.randn(3, pipeline.unet.config.cross_attention_dim)
    plain = pipeline.unet.get_submodule(LAYER)(x)
    first, second = random_lora(8), random_lora(4, seed=1)
    assert apply_lora(pipeline, first, 0.8) == len(first) / 3
    torch.testing.assert_close(pipeline.unet.get_submodule(LAYER)(x), plain + change(first, x, 0.8))
    apply_lora(pipeline, second, 0.4, name="base")
    both = plain + change(first, x, 0.8) + change(second, x, 0.4)
    torch.testing.assert_close(pipeline.unet.get_submodule(LAYER)(x), both)
    apply_lora(pipeline, second, -0.5)  # the same name: replaces the first
    replaced = plain + change(second, x, -0.5) + change(second, x, 0.4)
    torch.testing.assert_close(pipeline.unet.get_submodule(LAYER)(x), replaced)
    remove_lora(pipeline, "hyperlora")
    torch.testing.assert_close(pipeline.unet.get_submodule(LAYER)(x), plain + change(second, x, 0.4))
    remove_lora(pipeline)
    assert torch.equal(pipeline.unet.get_submodule(LAYER)(x), plain)


@torch.no_grad()
def test_fused_weights_of_every_layer(pipeline):
    lora = random_lora(8)
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    apply_lora(pipeline, lora, 0.8)
    pipeline.fuse_lora()
    try:
        after = {name.replace(".base_layer", ""): weight for name, weight in pipeline.unet.state_dict().items()}
        for name, weight in before.items():
            key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            if f"{key}.lora_up.weight" in lora:
                weight = weight + 0.8 * 0.5 * lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
            torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0, msg=name)
    finally:
        pipeline.unfuse_lora()


@torch.no_grad()
def test_original_checkpoint_names(pipeline):
    # input_blocks.0 is the first convolution; a block has its ResNets and one down- or upsampler
    per_block = pipeline.unet.config.layers_per_block + 1
    names = {"mid_block_attentions_0": "middle_block_1"}
    for block in (1, 2):
        for attention in range(per_block - 1):
            names[f"down_blocks_{block}_attentions_{attention}"] = f"input_blocks_{1 + block * per_block + attention}_1"
    for block in (0, 1):
        for attention in range(per_block):
            names[f"up_blocks_{block}_attentions_{attention}"] = f"output_blocks_{block * per_block + attention}_1"
    lora = random_lora(8)
    for ours, original in names.items():
        lora = {name.replace(ours, original): tensor for name, tensor in lora.items()}
    assert not any("attentions" in name for name in lora)
    apply_lora(pipeline, lora)
    renamed = paint(pipeline)
    apply_lora(pipeline, random_lora(8))
    assert np.array_equal(renamed, paint(pipeline))


def test_a_lora_that_does_not_fit_changes_nothing(pipeline):
    apply_lora(pipeline, random_lora(8))
    before = paint(pipeline)
    wrong_place = random_lora(8)
    for ending in (".lora_down.weight", ".lora_up.weight", ".alpha"):
        wrong_place[KEY.replace("mid_block", "down_blocks_0") + ending] = wrong_place.pop(KEY + ending)
    with pytest.raises(HyperLoRAError, match=r"doesn't fit this pipeline.*down_blocks_0"):
        apply_lora(pipeline, wrong_place)
    wrong_shape = random_lora(8) | {f"{KEY}.lora_down.weight": torch.zeros(8, 2048)}
    with pytest.raises(HyperLoRAError, match=r"is \d+ x 2048"):
        apply_lora(pipeline, wrong_shape)
    assert np.array_equal(before, paint(pipeline))


def test_pictures(pipeline):
    steps = []
    picture = paint(pipeline, progress=lambda done, total: steps.append((done, total)))
    assert picture.shape == (128, 128, 3) and picture.std() > 10
    assert steps == [(1, 2), (2, 2)]
    assert np.array_equal(picture, paint(pipeline))
    for other in ({"seed": 1}, {"cfg": 1.0}, {"clip_skip": 1}, {"negative": "blue"}):
        assert not np.array_equal(picture, paint(pipeline, **other)), other
    assert paint(pipeline, width=64, height=96).shape == (96, 64, 3)
    apply_lora(pipeline, random_lora(8), 0.8)
    assert np.abs(picture - paint(pipeline)).mean() > 1


def test_stopping_a_picture(pipeline):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paint(pipeline, progress=stop)


@pytest.mark.parametrize("options", [{"width": 100}, {"height": -8}, {"clip_skip": 0}])
def test_sizes_that_cannot_be_painted(pipeline, options):
    with pytest.raises(HyperLoRAError, match="multiples of 8"):
        paint(pipeline, **options)


def test_loading_says_what_is_wrong(tmp_path, folder):
    with pytest.raises(HyperLoRAError, match="doesn't exist"):
        load_pipeline(tmp_path / "nothing.safetensors")
    with pytest.raises(HyperLoRAError, match=r"model_index\.json"):
        load_pipeline(tmp_path)
    other = tmp_path / "sd15.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, other)
    with pytest.raises(HyperLoRAError, match="not a complete SDXL checkpoint"):
        load_pipeline(other)
    renamed = tmp_path / "sdxl.sft"
    other.rename(renamed)
    with pytest.raises(HyperLoRAError, match="rename"):
        load_pipeline(renamed)


def test_a_damaged_folder_is_named(tmp_path, folder):
    for file in (folder / "sdxl").rglob("*.*"):
        target = tmp_path / file.relative_to(folder / "sdxl")
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(file)
    weights = tmp_path / "unet" / sdxl.WEIGHT_FILES["unet"]
    weights.unlink()
    with pytest.raises(HyperLoRAError, match="can't be loaded as an SDXL model"):
        load_pipeline(tmp_path)
    weights.write_bytes((folder / "sdxl" / "unet" / weights.name).read_bytes()[:-1000])
    with pytest.raises(HyperLoRAError, match="is incomplete"):
        load_pipeline(tmp_path)


def test_loading_in_half_precision(folder):
    half = load_pipeline(folder, dtype=torch.float16)
    stored = load_file(folder / "sdxl" / "unet" / sdxl.WEIGHT_FILES["unet"])[f"{LAYER}.weight"]
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.float16
    assert torch.equal(half.unet.get_submodule(LAYER).weight, stored)
