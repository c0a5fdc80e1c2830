"""Seconds of calls, measured again and again."""

import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

SHORTEST = 0.005  # s; shorter calls are repeated within one measurement


def waiter(device: torch.device) -> Call:
    """What waits until the device has done all that it was given."""
    if device.type == "cpu":
        return lambda: None
    return getattr(torch, device.type).synchronize


def samples(call: Call, repetitions: int, wait: Call = lambda: None) -> list[float]:
    """Seconds of each of `repetitions` calls, after one that isn't counted."""
    return alternating([call], repetitions, wait)[0]


def alternating(calls: Sequence[Call], repetitions: int, wait: Call = lambda: None) -> list[list[float]]:
    """The same for several calls in turn, so that what slows the machine for a while slows all of them."""
    times = [max(1, round(SHORTEST / max(once(call, wait), 1e-9))) for call in calls]
    measured: list[list[float]] = [[] for _ in calls]
    for _ in range(repetitions):
        for call, count, into in zip(calls, times, measured, strict=True):
            into.append(_seconds(call, count, wait))
    return measured


def once(call: Call, wait: Call = lambda: None) -> float:
    """Seconds of one call, the first one too."""
    return _seconds(call, 1, wait)


def _seconds(call: Call, times: int, wait: Call) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - start) / times
