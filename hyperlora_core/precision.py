"""Which half precision, if any, this machine's processor is fast in."""

import functools
import time

import torch

SIDE, TRIES, GAIN = 1024, 3, 1.5


@functools.cache
def cpu_is_fast_in(dtype: torch.dtype) -> bool:
    """Whether the processor multiplies matrices of `dtype` at least 1.5 times as fast as fp32 ones.

    Measured, in some tenths of a second, since no flag tells it: some processors have bf16 units that PyTorch doesn't use,
    some have fp16 instructions that are slower than fp32's.
    """
    return GAIN * _seconds(dtype) < _seconds(torch.float32)


def fast_half(device: torch.device | str) -> torch.dtype | None:
    """bf16 on a processor that is fast in it; None on one that isn't, and on other devices, whose models choose theirs."""
    return torch.bfloat16 if torch.device(device).type == "cpu" and cpu_is_fast_in(torch.bfloat16) else None


def _seconds(dtype: torch.dtype) -> float:
    one = torch.ones(SIDE, SIDE, dtype=dtype)
    other = one.clone()
    best = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        torch.mm(one, other)
        best = min(best, time.perf_counter() - started)
    return best
