"""Which half precision a processor is fast in: measured, not guessed."""

import pytest
import torch

from hyperlora_core import precision


@pytest.fixture
def measured(monkeypatch):
    """Set how long a product takes in each precision."""
    precision.cpu_is_fast_in.cache_clear()
    seconds = {torch.float32: 1.0}
    monkeypatch.setattr(precision, "_seconds", seconds.__getitem__)
    yield seconds
    precision.cpu_is_fast_in.cache_clear()


@pytest.mark.parametrize(("bf16", "fast"), [(0.2, True), (0.6, True), (0.9, False), (1.0, False), (12.0, False)])
def test_half_precision_must_be_well_ahead(measured, bf16, fast):
    measured[torch.bfloat16] = bf16
    assert precision.cpu_is_fast_in(torch.bfloat16) is fast


def test_a_product_takes_time():
    assert 0 < precision._seconds(torch.float32) < 60
