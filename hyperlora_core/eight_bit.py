"""A basis in 8 bits: whole numbers from -127 to 127, and one scale for the K numbers that are mixed into one of a LoRA's.

    M[a, b] = sum_k alpha_k B_k[a, b]  ~  scale[a, b] * sum_k alpha_k Q_k[a, b],   scale[a, b] = max_k |B_k[a, b]| / 127

So the scale stands outside the sum: mixing stays one pass over the basis, with one product per number of the LoRA behind
it. A scale for each matrix, or for each matrix and rank, would go into the coefficients instead, but is as coarse as the
largest of thousands of numbers asks for: its error is larger, measured in docs/architecture.md.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .basis import VECTORS_PER_MODULE, LoRA, scale_name
from .hyperlora import BRANCHES, HyperLoRA
from .lora import pairs

LEVELS = 127

Progress = Callable[[int, int], None]


def is_eight_bit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a basis, name -> tensor, is in 8 bits."""
    return any(tensor.dtype == torch.int8 for tensor in tensors.values())


def quantize(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Basis tensor [K, a, b] -> int8 [K, a, b] and fp32 scale [a, b], whose product is nearest to it."""
    values = tensor.float()
    scale = values.abs().amax(0) / LEVELS
    smallest = torch.finfo(scale.dtype).tiny  # where all K are 0
    return (values / scale.clamp_min(smallest)).round_().to(torch.int8), scale


def quantize_basis(tensors: Mapping[str, Tensor], progress: Progress | None = None) -> dict[str, Tensor]:
    """A basis, name -> tensor, in 8 bits: half the bytes of fp16, and a scale of fp32 for each K numbers.

    `progress(tensors done, tensors)` may raise to stop.
    """
    small: dict[str, Tensor] = {}
    for done, (name, tensor) in enumerate(tensors.items(), start=1):
        small[name], small[scale_name(name)] = quantize(tensor)
        if progress is not None:
            progress(done, len(tensors))
    return small


def layer_errors(lora: LoRA, exact: LoRA) -> dict[str, float]:
    """LoRA key -> ||up @ down - exact up @ down|| / ||exact up @ down||, for two LoRAs of the same layers."""
    errors = {}
    for (key, down, up, scale), (_, exact_down, exact_up, exact_scale) in zip(pairs(lora), pairs(exact), strict=True):
        wanted = exact_scale * exact_up.float() @ exact_down.float()  # (out, in)
        # 0 for a layer that changes nothing
        smallest = torch.finfo(wanted.dtype).tiny
        errors[key] = float((scale * up.float() @ down.float() - wanted).norm() / wanted.norm().clamp_min(smallest))
    return errors


def checkpoint_errors(small: HyperLoRA, exact: HyperLoRA, seed: int = 0) -> dict[str, float]:
    """`layer_errors` of both branches, as `id: key` and `base: key`, for a person of random coefficients."""
    generator, errors = torch.Generator().manual_seed(seed), {}
    for branch in BRANCHES[: 1 + exact.has_base]:
        rows = torch.randn(VECTORS_PER_MODULE * len(exact.module_names), exact.basis.size, generator=generator)
        person = torch.nn.functional.normalize(rows, dim=-1)
        found = layer_errors(small.lora(person, branch), exact.lora(person, branch))
        errors |= {f"{branch}: {key}": error for key, error in found.items()}
    return errors
