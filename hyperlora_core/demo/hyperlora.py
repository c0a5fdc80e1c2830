"""Untrained HyperLoRA checkpoints in the published form and of any size: for training, tests and benchmarks.

Names and shapes: the published checkpoint; the network is HyperLoRA's (arXiv 2503.16944, section 3).
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ..basis import PROJECTIONS, VECTORS_PER_MODULE
from ..checkpoint import MODULES
from ..files import written_aside
from .sdxl import SDXL_BASE, unet_config

FACE_WIDTH = 512
# 4 M values: long enough that no two tensors of a checkpoint look alike, short enough to be drawn at once
NOISE_BLOCK = 1 << 22

Modules = dict[str, tuple[int, int | None]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HyperLoRASize:
    """Sizes of a HyperLoRA; the defaults are the published ones. `base_rank` 0: no base branch.

    `conditions`: what the ID branch reads, of "embedding" and "clip". `effect` scales the up bases: at 1, a LoRA with its
    own scale of 0.5 changes each layer's output by about half of what the layer itself gives; 0 starts training at no
    change.
    """

    bases: int = 128
    rank: int = 8
    base_rank: int = 0
    width: int = 1024
    depth: int = 4
    heads: int = 12
    head_width: int = 64
    clip_width: int = 1024
    id_tokens: int = 16
    conditions: tuple[str, ...] = ("embedding", "clip")
    effect: float = 1.0


DEMO = HyperLoRASize(
    bases=16, rank=8, base_rank=4, width=128, depth=2, heads=2, head_width=64, clip_width=128, id_tokens=4
)


@dataclass(frozen=True)
class Spec:
    """One tensor: `std` of its normal distribution, or with std 0 the constant `mean`."""

    part: str
    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0


def unet_modules(config: dict) -> Modules:
    """Attention modules of a diffusers UNet: LoRA name -> (hidden_size, cross_attention_dim or None for attn1).

    `config` is the UNet's config; order: down blocks, middle, up blocks.
    """
    widths, depths = config["block_out_channels"], config["transformer_layers_per_block"]
    layers = config["layers_per_block"]
    last = len(widths) - 1
    # (block, attentions in it, transformer layers in each, width)
    blocks = [
        (f"down_blocks_{i}", layers, depths[i], widths[i])
        for i, kind in enumerate(config["down_block_types"])
        if kind.startswith("CrossAttn")
    ]
    blocks.append(("mid_block", 1, depths[last], widths[last]))
    blocks += [
        (f"up_blocks_{i}", layers + 1, depths[last - i], widths[last - i])
        for i, kind in enumerate(config["up_block_types"])
        if kind.startswith("CrossAttn")
    ]
    return {
        f"lora_unet_{block}_attentions_{attention}_transformer_blocks_{layer}_{kind}": (width, context)
        for block, attentions, depth, width in blocks
        for attention in range(attentions)
        for layer in range(depth)
        for kind, context in (("attn1", None), ("attn2", config["cross_attention_dim"]))
    }


def SDXL_MODULES() -> Modules:
    """Return the 140 attention modules of SDXL."""
    return unet_modules(unet_config(SDXL_BASE))


def specs(modules: Modules, size: HyperLoRASize) -> Iterator[Spec]:
    """Every tensor of a checkpoint, part (file stem) after part."""
    yield from _bases(modules, size)
    yield from _resampler("resampler", len(modules), size, conditions=len(size.conditions))
    if "embedding" in size.conditions:
        tokens = size.id_tokens * size.clip_width
        yield Spec(
            "id_projector", "0.weight", (tokens, FACE_WIDTH), std=1.0
        )  # an embedding has length 1, not sqrt(512)
        yield Spec("id_projector", "0.bias", (tokens,))
        yield from _norm("id_projector", "2", size.clip_width)
    if size.base_rank:
        yield from _resampler("base_resampler", len(modules), size, conditions=1)


def _bases(modules: Modules, size: HyperLoRASize) -> Iterator[Spec]:
    branches = [("id", size.rank), ("base", size.base_rank)][: 2 if size.base_rank else 1]
    for i, (hidden, context) in enumerate(modules.values()):
        for linear in PROJECTIONS:
            inputs = (context or hidden) if linear in ("to_k", "to_v") else hidden
            for branch, rank in branches:
                name = f"{i}.{linear}.{branch}"
                # coefficients have length 1, so a mix of bases has the same deviation as one basis
                down, up = (size.bases, inputs, rank), (size.bases, rank, hidden)
                yield Spec(MODULES, f"{name}_down_basis", down, std=inputs**-0.5)
                yield Spec(MODULES, f"{name}_up_basis", up, std=size.effect * rank**-0.5)


def _resampler(part: str, modules: int, size: HyperLoRASize, conditions: int) -> Iterator[Spec]:
    width, inner = size.width, size.heads * size.head_width
    yield Spec(part, "latents", (1, VECTORS_PER_MODULE * modules, width), std=1.0)
    for name in ("proj_in", "proj_in_2")[:conditions]:
        yield from _linear(part, name, size.clip_width, width)
    for i in range(size.depth):
        layer = f"layers.{i}"
        norms = ["norm_attn1", "norm_attn2_l", "norm_attn2_x", "norm_attn3_l", "norm_attn3_y"][: 1 + 2 * conditions]
        for norm in [*norms, "norm_ff"]:
            yield from _norm(part, f"{layer}.{norm}", width)
        for attention in ("attn1", "attn2", "attn3")[: 1 + conditions]:
            for linear in ("to_q", "to_k", "to_v"):
                yield Spec(part, f"{layer}.{attention}.{linear}.weight", (inner, width), std=width**-0.5)
            yield Spec(part, f"{layer}.{attention}.to_out.0.weight", (width, inner), std=inner**-0.5)
        yield from _linear(part, f"{layer}.ff.net.0.proj", width, 4 * width)
        yield from _linear(part, f"{layer}.ff.net.2", 4 * width, width)
    yield from _linear(part, "proj_out", width, size.bases)


def _linear(part: str, name: str, inputs: int, outputs: int) -> Iterator[Spec]:
    yield Spec(part, f"{name}.weight", (outputs, inputs), std=inputs**-0.5)
    yield Spec(part, f"{name}.bias", (outputs,))


def _norm(part: str, name: str, width: int) -> Iterator[Spec]:
    yield Spec(part, f"{name}.weight", (width,), mean=1.0)
    yield Spec(part, f"{name}.bias", (width,))


def random_hyperlora(modules: Modules, size: HyperLoRASize = DEMO, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return an untrained checkpoint in memory, fp32: part (file stem) -> name -> tensor.

    `modules` as from unet_modules; hyper_lora_modules.json is written from it, see write_modules.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[str, Tensor]] = {}
    for spec in specs(modules, size):
        tensor = torch.full(spec.shape, spec.mean)
        if spec.std:
            tensor.normal_(std=spec.std, generator=generator)
        parts.setdefault(spec.part, {})[spec.name] = tensor
    return parts


def write_modules(folder: str | Path, modules: Modules) -> None:
    """Write hyper_lora_modules.json, the modules in the order of their coefficients."""
    described = {
        name: {"hidden_size": hidden, "cross_attention_dim": context} for name, (hidden, context) in modules.items()
    }
    with written_aside(Path(folder) / f"{MODULES}.json") as path:
        path.write_text(json.dumps(described, indent=2), encoding="utf-8")


def write_random_checkpoint(
    folder: str | Path,
    modules: Modules | None = None,
    size: HyperLoRASize | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write an untrained fp16 checkpoint folder at the disk's speed; by default of the published size (2.97 GB).

    Its numbers come from one block of noise, entered at another place for each tensor: right distribution, no
    independence, so for measuring, not for training. `progress(bytes done, bytes in all)` may raise to stop.
    """
    modules = modules or SDXL_MODULES()
    planned = list(specs(modules, size or HyperLoRASize()))
    total = sum(_bytes(spec) for spec in planned)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(NOISE_BLOCK, generator=generator)

    @cache  # a checkpoint has few distinct deviations
    def block(std: float, mean: float) -> bytes:
        return (noise * std + mean).half().numpy().tobytes()

    write_modules(folder, modules)
    done = 0
    for part, group in groupby(planned, key=lambda spec: spec.part):
        listed = list(group)
        with written_aside(Path(folder) / f"{part}.safetensors") as path, path.open("wb") as file:
            file.write(_header(listed))
            for spec in listed:
                source, left = memoryview(block(spec.std, spec.mean)), _bytes(spec)
                start = 2 * int(torch.randint(NOISE_BLOCK, (), generator=generator))
                while left:
                    piece = source[start : start + left]
                    left -= file.write(piece)
                    start = 0
                done += _bytes(spec)
                if progress is not None:
                    progress(done, total)


def _bytes(spec: Spec) -> int:
    return 2 * torch.Size(spec.shape).numel()


def _header(listed: list[Spec]) -> bytes:
    """The start of a safetensors file: length of the JSON (8 bytes, little-endian), JSON, padded to 8 bytes."""
    header, offset = {}, 0
    for spec in listed:
        end = offset + _bytes(spec)
        header[spec.name] = {"dtype": "F16", "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
