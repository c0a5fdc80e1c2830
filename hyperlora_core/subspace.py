"""Leading singular vectors of a weight, and how alike those of two weights are."""

from typing import NamedTuple

import torch
from torch import Tensor

SMALL = 256  # up to this side an exact decomposition is as quick as an estimate
OVERSAMPLED, ITERATIONS = 10, 3  # of the estimate: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithm 4.4


class Leading(NamedTuple):
    """The `count` largest singular values' vectors, in their order and in pairs: W v_i = s_i u_i."""

    left: Tensor  # [out, count]
    right: Tensor  # [in, count]

    def first(self, count: int) -> "Leading":
        return Leading(self.left[:, :count], self.right[:, :count])


def leading(weight: Tensor, count: int) -> Leading:
    """weight [out, in] -> its leading `count` singular vectors, fp32, on the weight's device (of Apple's, on the CPU).

    Exact, by the smaller Gram matrix, for a small weight or more than a quarter of all vectors; else an estimate, the
    same each time, that may mix vectors whose values are about the same.
    """
    # PyTorch has no eigh there, and its qr is slower than the CPU's
    weight = (weight.cpu() if weight.device.type == "mps" else weight).float()
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T  # (a, b), a <= b
    exact = len(wide) <= SMALL or 4 * count > len(wide)
    near, far = (_exact if exact else _estimated)(wide, count)
    return Leading(near, far) if wide is weight else Leading(far, near)


def _exact(wide: Tensor, count: int) -> tuple[Tensor, Tensor]:
    _, vectors = torch.linalg.eigh(wide @ wide.T)  # values rise
    near = vectors.flip(1)[:, :count]  # (a, count)
    far, scale = torch.linalg.qr(wide.T @ near)  # (b, count), its signs those of `scale`
    return near, far * torch.where(scale.diagonal() < 0, -1.0, 1.0)


def _estimated(wide: Tensor, count: int) -> tuple[Tensor, Tensor]:
    width = min(count + OVERSAMPLED, len(wide))
    probe = torch.randn(wide.shape[1], width, generator=torch.Generator().manual_seed(0)).to(wide)
    span = torch.linalg.qr(wide @ probe).Q  # (a, width)
    for _ in range(ITERATIONS):
        span = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ span).Q).Q
    turn, _, far = torch.linalg.svd(span.T @ wide, full_matrices=False)  # (width, width) (width) (width, b)
    return span @ turn[:, :count], far[:count].T


def overlap(first: Tensor, second: Tensor) -> float:
    """||A^T B||_F^2 / r of two orthonormal [n, r]: 1 for the same subspace, r / n by chance, 0 for orthogonal ones."""
    return float((first.T @ second).square().sum() / first.shape[1])
