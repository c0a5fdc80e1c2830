"""A whole CLIP, untrained and tiny, in the form of OpenAI's files on the hub; and what it makes of pictures and texts,
computed straight from its tensors by the paper's recipe (arXiv 2103.00020)."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

WORDS, TEXT, VISION, SHARED, PATCH = 49408, 64, 128, 32, 32
HEAD, TEXT_LAYERS, VISION_LAYERS = 64, 2, 1


def toy_clip(folder: Path) -> dict[str, Tensor]:
    """Write model.safetensors into `folder`; answers its tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"text_model.embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.tensor(4.6)}

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        tensors[name] = mean + 0.1 * torch.randn(shape, generator=generator)

    for tower, width, layers in (("text_model", TEXT, TEXT_LAYERS), ("vision_model", VISION, VISION_LAYERS)):
        sizes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        norms = {"text_model": ["final_layer_norm"], "vision_model": ["pre_layrnorm", "post_layernorm"]}[tower]
        blocks = [f"{tower}.encoder.layers.{i}." for i in range(layers)]
        for name, shape in [(block + name, shape) for block in blocks for name, shape in sizes.items()]:
            add(f"{name}.weight", *shape)
            add(f"{name}.bias", shape[0])
        for name in [f"{tower}.{norm}" for norm in norms] + [f"{b}layer_norm{i}" for b in blocks for i in (1, 2)]:
            add(f"{name}.weight", width, mean=1.0)
            add(f"{name}.bias", width)
    add("text_model.embeddings.token_embedding.weight", WORDS, TEXT)
    add("text_model.embeddings.position_embedding.weight", 77, TEXT)
    add("vision_model.embeddings.class_embedding", VISION)
    add("vision_model.embeddings.patch_embedding.weight", VISION, 3, PATCH, PATCH)
    add("vision_model.embeddings.position_embedding.weight", 5, VISION)  # 64 px: four patches and the class
    add("text_projection.weight", SHARED, TEXT)
    add("visual_projection.weight", SHARED, VISION)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def picture_vectors(tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """pixels [n, 3, 64, 64] -> [n, 32] of length 1."""
    part = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    patches = functional.conv2d(pixels, part["embeddings.patch_embedding.weight"], stride=PATCH).flatten(2).mT
    x = torch.cat([part["embeddings.class_embedding"].expand(len(pixels), 1, -1), patches], 1)
    x = _norm(part, "pre_layrnorm", x + part["embeddings.position_embedding.weight"])
    x = _norm(part, "post_layernorm", _blocks(part, x, VISION_LAYERS)[:, 0])
    return functional.normalize(x @ tensors["visual_projection.weight"].T, dim=1)


def text_vectors(tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """ids [n, 77], the last of the text the highest -> [n, 32] of length 1."""
    part = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    x = part["embeddings.token_embedding.weight"][ids] + part["embeddings.position_embedding.weight"]
    x = _norm(part, "final_layer_norm", _blocks(part, x, TEXT_LAYERS, causal=True))
    return functional.normalize(x[torch.arange(len(ids)), ids.argmax(1)] @ tensors["text_projection.weight"].T, dim=1)


def _blocks(part: dict[str, Tensor], x: Tensor, layers: int, causal: bool = False) -> Tensor:
    for i in range(layers):
        block = f"encoder.layers.{i}."
        y = _norm(part, f"{block}layer_norm1", x)
        heads = (
            _linear(part, f"{block}self_attn.{name}_proj", y).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for name in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=causal).transpose(1, 2).flatten(2)
        x = x + _linear(part, f"{block}self_attn.out_proj", mixed)
        y = _linear(part, f"{block}mlp.fc1", _norm(part, f"{block}layer_norm2", x))
        x = x + _linear(part, f"{block}mlp.fc2", y * torch.sigmoid(1.702 * y))  # QuickGELU
    return x


def _linear(part: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, part[f"{name}.weight"], part[f"{name}.bias"])


def _norm(part: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], part[f"{name}.weight"], part[f"{name}.bias"])
