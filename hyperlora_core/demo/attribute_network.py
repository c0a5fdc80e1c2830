"""The network that tells what a drawn portrait shows besides the person (evaluate/attributes.py)."""

import torch
from torch import nn

from .face_networks import Separable, convolution


class AttributeNetwork(nn.Module):
    """[n, 3, 128, 128] in -1..1 -> logits [n, outputs]. Places matter, so the last features keep theirs."""

    def __init__(self, outputs: int, operations=nn):
        super().__init__()
        self.body = nn.Sequential(
            convolution(operations, 3, 40, 4, 4),  # patches: thin lines such as wrinkles stay; [n, 40, 32, 32]
            nn.ReLU(),
            Separable(40, 40, operations=operations),
            Separable(40, 56, 2, operations=operations),  # 16 x 16
            *(Separable(56, 56, operations=operations) for _ in range(2)),
            Separable(56, 80, 2, operations=operations),  # 8 x 8
            Separable(80, 80, operations=operations),
            convolution(operations, 80, 12, 1),
            nn.ReLU(),
            nn.Flatten(),
            operations.Linear(12 * 64, outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)
