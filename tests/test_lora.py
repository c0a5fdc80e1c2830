"""LoRA dicts: branches merged, names, files, and the fit with a model."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from places import FIXTURES
from safetensors import safe_open
from safetensors.torch import load_file

from hyperlora_core import HyperLoRAError, load_hyperlora, load_lora, merge_branches, save_lora, to_diffusers
from hyperlora_core.lora import check_fits, diffusers_path, pairs
from hyperlora_core.metadata import describe, kept, save_preview

CASE = FIXTURES / "with_base"


@pytest.fixture(scope="module")
def loras():
    expected = load_file(CASE / "expected.safetensors")
    return [
        {name.partition(".")[2]: tensor for name, tensor in expected.items() if name.startswith(f"{branch}.")}
        for branch in ("id", "base")
    ]


def deltas(lora: dict, weight: float = 1.0) -> dict[str, torch.Tensor]:
    return {pair.key: weight * pair.scale * pair.up @ pair.down for pair in pairs(lora)}


@pytest.mark.parametrize("weights", [(0.8, 0.4), (1.0, 0.0), (-0.7, 1.2)])
def test_merged_equals_both(loras, weights):
    id_lora, base_lora = loras
    merged = merge_branches(id_lora, base_lora, *weights)
    first = next(pairs(merged))
    assert first.down.shape[0] == 8 + 4
    one, two = deltas(id_lora, weights[0]), deltas(base_lora, weights[1])
    for key, delta in deltas(merged).items():
        assert torch.allclose(delta, one[key] + two[key], atol=1e-5 * float(one[key].abs().max()))


def test_merging_without_base_is_weighting(loras):
    for key, delta in deltas(merge_branches(loras[0], None, 0.5)).items():
        assert torch.allclose(delta, deltas(loras[0], 0.5)[key], atol=1e-6)


def test_merging_what_doesnt_belong_together(loras):
    id_lora, base_lora = loras
    fewer = {name: tensor for name, tensor in base_lora.items() if "mid_block" not in name}
    with pytest.raises(HyperLoRAError, match="differ at lora_unet_mid_block"):
        merge_branches(id_lora, fewer)
    with pytest.raises(HyperLoRAError, match="the ID LoRA doesn't"):
        merge_branches({name: tensor for name, tensor in id_lora.items() if "mid_block" not in name}, base_lora)
    with pytest.raises(HyperLoRAError, match="aren't numbers"):
        merge_branches(id_lora, base_lora, float("nan"))


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k", "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"),
        ("mid_block_attentions_0_transformer_blocks_9_attn1_to_out_0", "mid_block.attentions.0.transformer_blocks.9.attn1.to_out.0"),
        ("input_blocks_4_1_transformer_blocks_0_attn1_to_q", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("input_blocks_8_1_transformer_blocks_9_attn2_to_v", "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v"),
        ("middle_block_1_transformer_blocks_3_attn1_to_k", "mid_block.attentions.0.transformer_blocks.3.attn1.to_k"),
        ("output_blocks_2_1_transformer_blocks_0_attn1_to_q", "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q"),
        ("output_blocks_3_1_transformer_blocks_1_attn2_to_out_0", "up_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0"),
    ],
)  # fmt: skip
def test_names_in_diffusers(key, path):
    assert diffusers_path(f"lora_unet_{key}") == path


def test_names_of_other_models():
    with pytest.raises(HyperLoRAError, match="not the name of an attention layer"):
        diffusers_path("lora_unet_double_blocks_0_img_attn_qkv")


def test_diffusers_form_has_the_same_effect(loras):
    renamed = to_diffusers(loras[0])
    wanted = deltas(loras[0])
    assert len(renamed) == 2 * len(wanted)
    for key, delta in wanted.items():
        path = f"unet.{diffusers_path(key)}"
        assert torch.allclose(renamed[f"{path}.lora_B.weight"] @ renamed[f"{path}.lora_A.weight"], delta, atol=1e-5)


def test_file_and_metadata(loras, tmp_path):
    path = tmp_path / "anna.safetensors"
    save_lora(loras[0], path, metadata=describe("anna"))
    again = load_lora(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in loras[0].items()) and len(again) == len(loras[0])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.trigger_phrase"] == "fcsks fxhks fhyks"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "4")
    save_lora(loras[0], path, dtype=torch.float16)
    assert next(pairs(load_lora(path))).up.dtype == torch.float16
    assert [p.name for p in tmp_path.iterdir()] == ["anna.safetensors"]
    with pytest.raises(HyperLoRAError, match="Unknown naming"):
        save_lora(loras[0], path, naming="a1111")


def test_what_managers_read(loras, tmp_path):
    path = tmp_path / "anna.safetensors"
    picture = np.zeros((300, 500, 3), dtype=np.uint8)
    picture[:, 100:400] = (200, 40, 40)  # the middle square
    save_lora(loras[0], path, metadata=describe("anna", preview=picture))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "anna"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "fcsks fxhks fhyks" in metadata["modelspec.usage_hint"]
    assert json.loads(metadata["ss_tag_frequency"]) == {"hyperlora": {"fcsks fxhks fhyks": 1}}
    head, _, code = metadata["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(code))) as small:
        assert small.size == (256, 256) and small.format == "JPEG"
        assert np.abs(np.asarray(small).astype(int) - (200, 40, 40)).max() < 20
    assert len(code) < 100_000  # ComfyUI reads headers of up to 8 MB
    assert save_preview(picture, path) == tmp_path / "anna.png"
    with Image.open(tmp_path / "anna.png") as whole:
        assert np.array_equal(np.asarray(whole), picture)
    assert "modelspec.thumbnail" not in describe("anna")


def test_a_folder_that_cant_be_written(loras, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HyperLoRAError, match="Can't write"):
        save_lora(loras[0], tmp_path / "file" / "anna.safetensors")


def test_fit(loras):
    layers = {pair.key: (pair.up.shape[0], pair.down.shape[1]) for pair in pairs(loras[0])}
    check_fits(loras[0], layers)
    key = next(iter(layers))
    without_alpha = {name: tensor for name, tensor in loras[0].items() if not name.endswith(".alpha")}
    for lora in (loras[0], without_alpha):
        with pytest.raises(HyperLoRAError, match="1 of 16 layers don't exist"):
            check_fits(lora, {name: shape for name, shape in layers.items() if name != key})
    with pytest.raises(HyperLoRAError, match="the model's layer 64 x 64"):
        check_fits(loras[0], layers | {key: (64, 64)})


def test_what_was_said_of_other_tensors_is_not_kept(loras, tmp_path):
    said = describe("Anna") | {"sshs_model_hash": "ab", "sshs_legacy_hash": "ab", "modelspec.hash_sha256": "0xab"}
    save_lora(loras[0], tmp_path / "anna.safetensors", metadata=said)
    stays = kept(tmp_path / "anna.safetensors")
    assert (
        describe("Anna").keys() <= stays.keys()
        and stays["modelspec.trigger_phrase"] == said["modelspec.trigger_phrase"]
    )
    assert not [name for name in stays if "hash" in name or name.startswith("ss_network_")]


def test_broken_loras(loras):
    name = next(name for name in loras[0] if name.endswith("lora_up.weight"))
    with pytest.raises(HyperLoRAError, match="no matching down and up"):
        merge_branches({n: t for n, t in loras[0].items() if n != name}, None)
    with pytest.raises(HyperLoRAError, match="NaN"):
        merge_branches(loras[0] | {name: loras[0][name] * float("nan")}, None)
    down, alpha = (name.replace("lora_up.weight", ending) for ending in ("lora_down.weight", "alpha"))
    for broken in (
        {alpha: torch.tensor(float("nan"))},
        {alpha: torch.tensor([3.0, 4.0])},
        {down: loras[0][down][:0], name: loras[0][name][:, :0]},
    ):
        with pytest.raises(HyperLoRAError, match=r"has rank \d+ and alpha"):
            merge_branches(loras[0] | broken, None)
    with pytest.raises(HyperLoRAError, match="no tensor at all"):
        merge_branches({}, None)
    with pytest.raises(HyperLoRAError, match=r"it holds x\.diff"):
        merge_branches(loras[0] | {"x.diff": torch.zeros(1)}, None)


def test_lora_is_owned_and_contiguous():
    hyper = load_hyperlora(CASE)
    coefficients = torch.nn.functional.normalize(torch.randn(32, 8), dim=-1)
    lora = hyper.lora(coefficients)
    assert len({tensor.data_ptr() for tensor in lora.values()}) == len(lora)
    before = hyper.lora(coefficients)
    for tensor in lora.values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in hyper.lora(coefficients).items())
