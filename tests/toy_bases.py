"""Attention weights of small random bases, LoRAs for them, and what a pruned model keeps of one."""

import torch

from hyperlora_core.lora import pairs

ONE_BLOCK = {"mid_block": (1,)}
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
WIDTH, CONTEXT, RANK = 24, 16, 3


def unet(layout: dict, seed: int = 0, width: int = WIDTH, context: int = CONTEXT) -> dict[str, torch.Tensor]:
    """The attention weights of a UNet with random weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{level}.attentions.{stack}.transformer_blocks.{block}.{attention}.{linear}.weight": torch.randn(
            width, context if attention == "attn2" and linear in ("to_k", "to_v") else width, generator=generator
        )
        for level, stacks in layout.items()
        for stack, depth in enumerate(stacks)
        for block in range(depth)
        for attention in ("attn1", "attn2")
        for linear in ("to_q", "to_k", "to_v", "to_out.0")
    }


def lora_of(tensors: dict[str, torch.Tensor], seed: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, weight in tensors.items():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        lora[f"{key}.lora_down.weight"] = torch.randn(RANK, weight.shape[1], generator=generator)
        lora[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], RANK, generator=generator)
        lora[f"{key}.alpha"] = torch.tensor(RANK / 2)
    return lora


def changes(lora: dict) -> dict[str, torch.Tensor]:
    return {pair.key: pair.scale * pair.up @ pair.down for pair in pairs(lora)}


def pruned(tensors: dict, kept: dict, noise: float = 0.3) -> tuple[dict, dict[str, str]]:
    """What is left, numbered anew and trained on a little; and source block -> its block there."""
    generator = torch.Generator().manual_seed(3)
    left, blocks = {}, {}
    for level, stacks in kept.items():
        for stack, (old_stack, numbers) in enumerate(stacks.items()):
            for block, number in enumerate(numbers):
                old = f"{level}.attentions.{old_stack}.transformer_blocks.{number}"
                blocks[old] = f"{level}.attentions.{stack}.transformer_blocks.{block}"
                for name, weight in tensors.items():
                    if name.startswith(f"{old}."):
                        drift = noise * torch.randn(weight.shape, generator=generator)
                        left[name.replace(old, blocks[old])] = weight + drift
    return left, blocks
