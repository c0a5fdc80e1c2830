"""A LoRA at a lower rank, with the least error that the rank allows."""

from collections.abc import Mapping

import torch

from .errors import HyperLoRAError
from .lora import ALPHA, DOWN, UP, LoRA, pairs


def compress(lora: LoRA, rank: int) -> tuple[LoRA, dict[str, float]]:
    """The nearest LoRA of at most `rank` per layer, and for each LoRA key the share of the layer's change that is lost.

    Nearest in the Frobenius norm (Eckart and Young): the leading singular values of alpha / r * up @ down. That product
    is never built: up = Q_u R_u and down^T = Q_d R_d leave an SVD of R_u R_d^T, r x r. The error is
    ||change - compressed|| / ||change||, 0 for a layer that changes nothing. A layer whose rank is not above `rank` keeps
    its change (error 0). Pairs come out in the precision they came in, alike in length, with alpha = rank.
    Raises HyperLoRAError for a rank below 1, and as `pairs` does.
    """
    if rank < 1:
        raise HyperLoRAError(f"A LoRA can't be compressed to rank {rank}: choose 1 or more.")
    compressed: LoRA = {}
    errors: dict[str, float] = {}
    for key, down, up, scale in pairs(lora):
        # on the CPU: so small they are slower on a GPU, and Apple's has no QR
        q_up, r_up = torch.linalg.qr(up.float().cpu())  # (out, k), (k, r)
        q_down, r_down = torch.linalg.qr(down.float().cpu().T)  # (in, l), (l, r)
        left, values, right = torch.linalg.svd(scale * r_up @ r_down.T, full_matrices=False)  # (k, m) (m) (m, l)
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        compressed[key + DOWN] = (root[:, None] * (right[:kept] @ q_down.T)).to(down)  # (kept, in)
        compressed[key + UP] = (q_up @ left[:, :kept] * root).to(up)  # (out, kept)
        compressed[key + ALPHA] = torch.tensor(float(kept))
        whole = float(values.norm())
        errors[key] = float(values[kept:].norm()) / whole if whole else 0.0
    return compressed, errors


def describe_errors(errors: Mapping[str, float], rank: int) -> str:
    """A sentence for people about what `compress` lost."""
    worst = max(errors, key=errors.__getitem__)
    mean = sum(errors.values()) / len(errors)
    return f"Rank {rank}: {mean:.1%} of a layer's change is lost on average, at most {errors[worst]:.1%} ({worst})."
