"""Leading singular vectors, and how far two subspaces agree."""

import pytest
import torch

from hyperlora_core.subspace import SMALL, leading, overlap


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (24, 24)])
def test_leading_vectors(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    _, values, _ = torch.linalg.svd(weight)
    left, right = leading(weight, 5)
    assert left.shape == (shape[0], 5) and right.shape == (shape[1], 5)
    assert torch.allclose(left.T @ weight @ right, values[:5].diag(), atol=1e-4)


def test_estimated_vectors_of_a_large_weight():
    side = SMALL + 44
    values = 0.8 ** torch.arange(side)
    bases = [torch.linalg.qr(torch.randn(side, side, generator=torch.Generator().manual_seed(n))).Q for n in (1, 2)]
    found = leading(bases[0] * values @ bases[1].T, 8)
    assert overlap(found.left, bases[0][:, :8]) > 0.999 and overlap(found.right, bases[1][:, :8]) > 0.999


def test_overlap():
    basis = torch.eye(10)
    assert overlap(basis[:, :4], basis[:, :4]) == 1 and overlap(basis[:, :4], basis[:, 4:8]) == 0
    assert overlap(basis[:, :4], basis[:, 2:6]) == 0.5
