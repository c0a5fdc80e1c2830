"""LoRA dicts: ID and base as one, names of other tools, files, and the check that a LoRA fits a model.

A LoRA is a plain dict, `<key>.lora_down.weight` [r, in], `<key>.lora_up.weight` [out, r], `<key>.alpha`, where the key
is `lora_unet_` and the layer's path with underscores: what ComfyUI calls LORA_MODEL. It means
W + weight * alpha / r * up @ down.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from .basis import LoRA
from .errors import HyperLoRAError
from .files import write_tensors, written_aside
from .weights_check import check_safetensors

NAMINGS = ("kohya", "diffusers")
SDXL_LAYERS_PER_BLOCK = 2

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


class Pair(NamedTuple):
    """One layer's two matrices and the factor alpha / r."""

    key: str
    down: Tensor  # [r, in]
    up: Tensor  # [out, r]
    scale: float


def pairs(lora: Mapping[str, Tensor]) -> Iterator[Pair]:
    """The layers of a LoRA dict, in its order. Raises HyperLoRAError where half a pair is missing, or for NaN."""
    keys = [name[: -len(DOWN)] for name in lora if name.endswith(DOWN)]
    known = {key + ending for key in keys for ending in (DOWN, UP, ALPHA)}
    strangers = [name for name in lora if name not in known]
    if not keys or strangers:
        name = strangers[0] if strangers else "no tensor at all"
        raise HyperLoRAError(
            f"This isn't a LoRA of down and up pairs: it holds {name}. Use one from Generate LoRA or load_lora."
        )
    for key in keys:
        down, up = lora[key + DOWN], lora.get(key + UP)
        if up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
            raise HyperLoRAError(
                f"The LoRA's {key} has no matching down and up matrices: generate or download it again."
            )
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise HyperLoRAError(
                f"The LoRA's {key} holds NaN or infinity: generate it again, in fp32 if that happens often."
            )
        rank = down.shape[0]
        alpha = torch.as_tensor(lora.get(key + ALPHA, float(rank)))
        if rank == 0 or alpha.numel() != 1 or not torch.isfinite(alpha).all():
            raise HyperLoRAError(
                f"The LoRA's {key} has rank {rank} and alpha {alpha.tolist()}: generate or download it again."
            )
        yield Pair(key, down, up, float(alpha) / rank)


def merge_branches(id_lora: LoRA, base_lora: LoRA | None, id_weight: float = 0.8, base_weight: float = 0.4) -> LoRA:
    """ID and base as one LoRA of rank r_id + r_base that, at weight 1, equals applying both at their weights.

    Without a base LoRA: the ID LoRA at its weight. Raises HyperLoRAError when the two don't have the same layers, or a
    weight isn't finite.
    """
    check_weights(id_weight, base_weight)
    base = {} if base_lora is None else {pair.key: pair for pair in pairs(base_lora)}
    merged: LoRA = {}
    for key, down, up, scale in pairs(id_lora):
        up = up * (scale * id_weight)
        if base_lora is not None:
            other = base.pop(key, None)
            if other is None or other.down.shape[1] != down.shape[1] or other.up.shape[0] != up.shape[0]:
                raise HyperLoRAError(f"ID and base LoRA differ at {key}: generate both from one identity.")
            down = torch.cat([down, other.down])  # (r_id + r_base, in)
            up = torch.cat([up, other.up * (other.scale * base_weight)], dim=1)  # (out, r_id + r_base)
        merged[key + DOWN], merged[key + UP] = down, up
        merged[key + ALPHA] = torch.tensor(float(len(down)))
    if base:
        raise HyperLoRAError(
            f"The base LoRA has {next(iter(base))}, the ID LoRA doesn't: generate both from one identity."
        )
    return merged


def check_weights(id_weight: float, base_weight: float) -> None:
    """Raise HyperLoRAError for NaN and infinity, which would blacken the picture without a word."""
    if not (math.isfinite(id_weight) and math.isfinite(base_weight)):
        raise HyperLoRAError(
            f"The weights {id_weight} and {base_weight} aren't numbers to multiply with: use 0.8 and 0.4."
        )


def check_fits(lora: Mapping[str, Tensor], layers: Mapping[str, tuple[int, ...]], model: str = "this model") -> None:
    """Raise HyperLoRAError unless every pair has a layer [out, in] to go to; hosts ignore those that don't, silently.

    `layers`: LoRA key -> shape of the layer's weight.
    """
    unknown, wrong = [], []
    for key, down, up, _ in pairs(lora):
        if key not in layers:
            unknown.append(key)
        elif (up.shape[0], down.shape[1]) != tuple(layers[key][:2]):
            wrong.append(
                f"{key} is {up.shape[0]} x {down.shape[1]}, the model's layer {' x '.join(map(str, layers[key]))}"
            )
    if unknown or wrong:
        count = sum(name.endswith(DOWN) for name in lora)
        what = f"{len(unknown)} of {count} layers don't exist there, e.g. {unknown[0]}" if unknown else wrong[0]
        raise HyperLoRAError(
            f"This LoRA doesn't fit {model}: {what}. "
            "A HyperLoRA made for SDXL needs an SDXL checkpoint, one for the demo the demo checkpoint."
        )


def to_diffusers(lora: Mapping[str, Tensor], layers_per_block: int = SDXL_LAYERS_PER_BLOCK) -> LoRA:
    """-> `unet.<diffusers path>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], alpha / r folded into B.

    `layers_per_block` counts ResNets per block and matters only for names of the original checkpoint
    (`input_blocks_4_1_...`).
    """
    renamed: LoRA = {}
    for key, down, up, scale in pairs(lora):
        path = f"unet.{diffusers_path(key, layers_per_block)}"
        renamed[f"{path}.lora_A.weight"] = down.contiguous()
        renamed[f"{path}.lora_B.weight"] = (up * scale).contiguous()
    return renamed


_SUFFIX = r"_transformer_blocks_(?P<layer>\d+)_(?P<attention>attn[12])_(?P<linear>to_q|to_k|to_v|to_out_0)"
_DIFFUSERS = re.compile(
    r"lora_unet_(?P<block>down_blocks_\d+|mid_block|up_blocks_\d+)_attentions_(?P<index>\d+)" + _SUFFIX
)
_ORIGINAL = re.compile(r"lora_unet_(?P<side>input|middle|output)_blocks?(?:_(?P<number>\d+))?_1" + _SUFFIX)


def attention_path(key: str) -> str | None:
    """diffusers_path of a key in diffusers' spelling; None for any other key."""
    return diffusers_path(key) if _DIFFUSERS.fullmatch(key) else None


def diffusers_path(key: str, layers_per_block: int = SDXL_LAYERS_PER_BLOCK) -> str:
    """`lora_unet_..._attn1_to_q`, in diffusers' or the original checkpoint's spelling -> diffusers' dotted path."""
    if match := _DIFFUSERS.fullmatch(key):
        block, index = re.sub(r"_(\d+)$", r".\1", match["block"]), match["index"]
    elif match := _ORIGINAL.fullmatch(key):
        # input_blocks.0 is the first convolution; each block has its ResNets and one down- or upsampler
        if match["side"] == "middle":
            block, index = "mid_block", "0"
        elif match["side"] == "input":
            number, index = divmod(int(match["number"]) - 1, layers_per_block + 1)
            block = f"down_blocks.{number}"
        else:
            number, index = divmod(int(match["number"]), layers_per_block + 1)
            block = f"up_blocks.{number}"
    else:
        raise HyperLoRAError(
            f"{key} is not the name of an attention layer of an SDXL UNet: this LoRA is for something else."
        )
    linear = match["linear"].replace("to_out_0", "to_out.0")
    return f"{block}.attentions.{index}.transformer_blocks.{match['layer']}.{match['attention']}.{linear}"


def save_lora(
    lora: LoRA,
    path: str | Path,
    naming: str = "kohya",
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an ordinary LoRA file: 'kohya' keeps the keys (ComfyUI and most tools), 'diffusers' renames for PEFT.

    `dtype`: precision of the file, by default the LoRA's own. The usual metadata (architecture, rank, alpha) is added.
    """
    if naming not in NAMINGS:
        raise HyperLoRAError(f"Unknown naming {naming!r}: choose one of {', '.join(NAMINGS)}.")
    first = next(pairs(lora))
    rank = first.down.shape[0]
    described = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers" if naming == "diffusers" else "https://github.com/kohya-ss/sd-scripts",
        "ss_network_module": "networks.lora",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{rank * (1 if naming == 'diffusers' else first.scale):g}",
        **(metadata or {}),
    }
    tensors = to_diffusers(lora) if naming == "diffusers" else lora
    # alpha stays exact; everything is cloned since safetensors refuses tensors that share memory
    tensors = {
        name: tensor.detach().to("cpu", dtype if dtype and not name.endswith(ALPHA) else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }
    with written_aside(path) as aside:
        write_tensors(aside, {name: tensor.contiguous() for name, tensor in tensors.items()}, described)


def load_lora(path: str | Path) -> LoRA:
    """Read a LoRA file in kohya naming, in the file's precision. Raises HyperLoRAError for anything else."""
    path = Path(path)
    if not path.exists():
        raise HyperLoRAError(f"{path} doesn't exist. Choose a LoRA file.")
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        lora = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    for _ in pairs(lora):
        pass
    return lora
