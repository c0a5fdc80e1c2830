"""LoRAs in the sizes of a checkpoint, without mixing them: applying asks for shapes, not for a person."""

import torch
from torch import Tensor

from hyperlora_core.basis import PROJECTIONS, SCALE, LoRA, lora_key
from hyperlora_core.hyperlora import HyperLoRA


def random_lora(hyper: HyperLoRA, seed: int, rank: int | None = None) -> LoRA:
    """One for every layer that the checkpoint has; `rank`: of another rank than its ID branch."""
    rank = rank or hyper.basis.rank("id")
    generator = torch.Generator().manual_seed(seed)
    lora: LoRA = {}

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    for i, module in enumerate(hyper.module_names):
        for projection in PROJECTIONS:
            key = lora_key(module, projection)
            lora[f"{key}.lora_down.weight"] = random(rank, hyper.basis.tensor(i, projection, "id", "down").shape[1])
            lora[f"{key}.lora_up.weight"] = random(hyper.basis.tensor(i, projection, "id", "up").shape[2], rank)
            lora[f"{key}.alpha"] = torch.tensor(rank * SCALE)
    return lora


def id_and_base(hyper: HyperLoRA, seed: int) -> tuple[LoRA, LoRA]:
    """The base branch has half the ID branch's rank; the published checkpoints have none, but others do."""
    rank = hyper.basis.rank("id")
    return random_lora(hyper, seed), random_lora(hyper, seed + 1, max(1, rank // 2))
