"""The models that are measured: the shipped demo's, or untrained ones of the published shape, written on the spot."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hyperlora_core.checkpoint import find_parts
from hyperlora_core.demo.hyperlora import write_random_checkpoint
from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.files import write_tensors, written_aside
from hyperlora_core.locate import DEMO_CLIP, DEMO_HYPER, demo_folder
from hyperlora_core.vision import is_clip_tower

CLIP_WIDTH, CLIP_LAYERS, CLIP_PATCH, CLIP_TOKENS = 1024, 24, 14, 257  # ViT-L/14
NOISE = 1 << 22  # values; each tensor is cut from these, which is as good as new ones where only time is measured

Progress = Callable[[int, int], None]


def demo_models() -> tuple[Path, Path]:
    """Checkpoint and CLIP tower."""
    return demo_folder() / DEMO_HYPER, demo_folder() / DEMO_CLIP


def published_models(folder: Path, progress: Progress | None = None) -> tuple[Path, Path]:
    """The same in the published shape, below `folder`: those that lie there, else written now (3.7 GB).

    `progress(bytes done, bytes in all)` may raise to stop.
    """
    checkpoint, clip = folder / "hyper_lora", folder / "clip_vision" / "model.safetensors"
    try:
        find_parts(checkpoint)
    except HyperLoRAError:
        write_random_checkpoint(checkpoint, progress=progress)
    if not (clip.exists() and is_clip_tower(clip, CLIP_WIDTH)):
        write_random_clip(clip)
    return checkpoint, clip


def write_random_clip(path: Path) -> None:
    """An untrained CLIP ViT-L/14 image tower in Hugging Face's form, fp16 (0.6 GB)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NOISE, generator=generator)
    tensors: dict[str, Tensor] = {}

    def random(name: str, *shape: int, deviation: float) -> None:
        count = torch.Size(shape).numel()
        start = int(torch.randint(NOISE // 2, (), generator=generator))
        values = (noise[start:] * deviation).half()
        tensors[name] = values.repeat(-(-count // len(values)))[:count].reshape(shape)

    def linear(name: str, inputs: int, outputs: int) -> None:
        random(f"{name}.weight", outputs, inputs, deviation=inputs**-0.5)
        tensors[f"{name}.bias"] = torch.zeros(outputs, dtype=torch.float16)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = torch.ones(CLIP_WIDTH, dtype=torch.float16)
        tensors[f"{name}.bias"] = torch.zeros(CLIP_WIDTH, dtype=torch.float16)

    top = "vision_model"
    random(f"{top}.embeddings.class_embedding", CLIP_WIDTH, deviation=1)
    random(f"{top}.embeddings.position_embedding.weight", CLIP_TOKENS, CLIP_WIDTH, deviation=1)
    random(f"{top}.embeddings.patch_embedding.weight", CLIP_WIDTH, 3, CLIP_PATCH, CLIP_PATCH, deviation=0.04)
    norm(f"{top}.pre_layrnorm")
    for i in range(CLIP_LAYERS):
        layer = f"{top}.encoder.layers.{i}"
        norm(f"{layer}.layer_norm1")
        norm(f"{layer}.layer_norm2")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}.self_attn.{part}", CLIP_WIDTH, CLIP_WIDTH)
        linear(f"{layer}.mlp.fc1", CLIP_WIDTH, 4 * CLIP_WIDTH)
        linear(f"{layer}.mlp.fc2", 4 * CLIP_WIDTH, CLIP_WIDTH)
    with written_aside(path) as aside:
        write_tensors(aside, tensors, {})
