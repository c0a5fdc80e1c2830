"""The CLIP tower against transformers' own, on random weights of ViT-L/14's shape and of the demo's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperlora_core import HyperLoRAError, VisionEncoder
from hyperlora_core.encode import PhotoEncoder
from hyperlora_core.hyperlora import MOST_AT_ONCE
from hyperlora_core.vision import clip_pixels, is_clip_tower

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 32,
}


def random_tower(sizes: dict):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**{"image_size": 224, "hidden_act": "quick_gelu"} | sizes)
    tower = transformers.CLIPVisionModel(config).eval()
    with torch.no_grad():  # so that biases and norms count, as in trained weights
        for tensor in tower.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.02)
    return tower


def vision_part(tower) -> dict[str, torch.Tensor]:
    """The tensors as Hugging Face files name them, whatever this version of transformers calls them in memory."""
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    return {
        f"vision_model.{name}": tensor.contiguous() for name, tensor in tensors.items() if "position_ids" not in name
    }


def open_clip_form(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same weights under open_clip's names."""
    renamed = {}
    names = [
        ("embeddings.class_embedding", "class_embedding"), ("embeddings.position_embedding.weight", "positional_embedding"),
        ("embeddings.patch_embedding.weight", "conv1.weight"), ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
        ("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ]  # fmt: skip
    for name, tensor in tensors.items():
        name = name.removeprefix("vision_model.")
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        renamed[prefix + name] = tensor
    for stem in {name.partition("self_attn.q_proj.")[0] for name in renamed if "self_attn.q_proj." in name}:
        for kind in ("weight", "bias"):
            parts = [renamed.pop(f"{stem}self_attn.{part}_proj.{kind}") for part in "qkv"]
            renamed[f"{stem}attn.in_proj_{kind}"] = torch.cat(parts)
    return renamed


@pytest.mark.parametrize(
    "sizes", [pytest.param(LARGE, id="ViT-L/14", marks=pytest.mark.slow), pytest.param(SMALL, id="small")]
)
def test_tokens_equal_transformers(sizes, tmp_path):
    tower = random_tower(sizes)
    pixels = torch.stack(
        [clip_pixels(np.random.default_rng(i).integers(0, 256, (300, 260, 3), np.uint8)) for i in range(2)]
    )
    with torch.inference_mode():
        wanted = tower(pixels, output_hidden_states=True).hidden_states[-2]
    tensors = vision_part(tower)
    text = {
        "text_model.embeddings.token_embedding.weight": torch.zeros(9, 4),
        "text_model.embeddings.position_embedding.weight": torch.zeros(77, 768),
        "logit_scale": torch.tensor(1.0),
    }
    files = {
        "hf_vision.safetensors": tensors,
        "hf_whole.safetensors": tensors | text | {"visual_projection.weight": torch.zeros(8, sizes["hidden_size"])},
        "open_clip.safetensors": open_clip_form(tensors, "visual.")
        | {"token_embedding.weight": torch.zeros(9, 4), "positional_embedding": torch.zeros(77, 768)},
        "open_clip_visual.safetensors": open_clip_form(tensors, ""),
    }
    for name, content in files.items():
        path = tmp_path / name
        save_file(content, path)
        encoder = VisionEncoder.load(path)
        tokens = encoder.encode(pixels)
        assert tokens.shape == wanted.shape, name
        assert (tokens - wanted).abs().max() < 1e-4, name
        assert (encoder.width, encoder.image_size) == (sizes["hidden_size"], 224)
        assert is_clip_tower(path, sizes["hidden_size"]) and not is_clip_tower(path, 7)
        path.unlink()


def test_many_pictures_go_in_groups(tmp_path, monkeypatch):
    save_file(vision_part(random_tower(SMALL)), tmp_path / "model.safetensors")
    encoder, counts = VisionEncoder.load(tmp_path), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: counts.append(len(pixels)) or encode(pixels))
    pictures = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(MOST_AT_ONCE + 3)]
    together = encoder.encode_pictures(pictures)
    assert counts == [MOST_AT_ONCE, 3]
    apart = torch.cat([encoder.encode_pictures([picture]) for picture in pictures])
    assert torch.allclose(together, apart, atol=1e-4)


def test_the_tower_for_336_pixels_is_refused(tmp_path):
    """It has the width of that for 224, and a resampler takes its tokens; the person would be nobody."""
    sizes = {"hidden_size": 1024, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16}
    for side, fits in ((224, True), (336, False)):
        path = tmp_path / f"clip-vit-large-patch14-{side}.safetensors"
        save_file(vision_part(random_tower({**sizes, "patch_size": 14, "image_size": side})), path)
        assert is_clip_tower(path, 1024) is fits
        whole = tmp_path / f"whole-{side}.safetensors"
        text = {"text_model.embeddings.position_embedding.weight": torch.zeros(77, 768)}
        save_file({**text, **load_file(path)}, whole)
        assert is_clip_tower(whole, 1024) is fits
    reads = SimpleNamespace(name="a checkpoint", clip_width=1024)
    with pytest.raises(HyperLoRAError, match=r"577 tokens .* reads 257: .*not the one for 336"):
        PhotoEncoder(reads, None, VisionEncoder.load(path))


def test_a_folder_and_half_precision(tmp_path):
    tower = random_tower(SMALL)
    save_file({name: tensor.half() for name, tensor in vision_part(tower).items()}, tmp_path / "model.safetensors")
    whole, half = (VisionEncoder.load(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    picture = np.full((64, 64, 3), 90, np.uint8)
    one, two = whole.encode_pictures([picture]), half.encode_pictures([picture]).float()
    assert whole.name == tmp_path.name
    assert 0 < (one - two).norm() / one.norm() < 0.02


def test_not_a_clip_tower(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(HyperLoRAError, match="no class embedding"):
        VisionEncoder.load(path)
    assert not is_clip_tower(path, 128)
    tensors = vision_part(random_tower(SMALL))
    del tensors["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(tensors, path)
    with pytest.raises(HyperLoRAError, match=r"layers\.1\.mlp\.fc1\.weight and 0 more tensors are missing"):
        VisionEncoder.load(path)
    with pytest.raises(HyperLoRAError, match="There is no file"):
        VisionEncoder.load(tmp_path / "none.safetensors")
