"""From measurements of people to figures with their uncertainty."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

DRAWS = 2000
CONFIDENCE = 0.95

# means over people [..., k] -> figure [...]
Statistic = Callable[[np.ndarray], np.ndarray]


class Measured(NamedTuple):
    """What was measured of each person, and how their mean becomes a figure."""

    columns: np.ndarray  # [people, k]
    statistic: Statistic


class Figure(NamedTuple):
    """A figure and the interval in which it would come out for other people, with 95 % confidence; NaN: undefined."""

    value: float
    low: float
    high: float


def ratio(means: np.ndarray) -> np.ndarray:
    """Column 0 per column 1: a share, when these count hits and tries."""
    return means[..., 0] / means[..., 1]


def along(means: np.ndarray) -> np.ndarray:
    """Where column 0 lies between column 1, which is 0, and column 2, which is 1."""
    return (means[..., 0] - means[..., 1]) / (means[..., 2] - means[..., 1])


def share(hits: np.ndarray, tries: np.ndarray | None = None) -> Measured:
    """Hits per try, or the mean of `hits` [people, ...], over all people together."""
    tries = np.ones_like(hits, dtype=float) if tries is None else tries
    per_person = [side.reshape(len(side), -1).sum(1, dtype=float) for side in (hits, tries)]
    return Measured(np.stack(per_person, 1), ratio)


def estimate(measured: Measured, seed: int = 0) -> Figure:
    """The figure, with the bootstrap's percentile interval over people (Efron 1979)."""
    return _figure(measured.statistic, measured.columns, seed)


def difference(one: Measured, other: Measured, seed: int = 0) -> Figure:
    """`one` minus `other`, with the interval that people measured in both ways give: they are drawn together."""
    k = one.columns.shape[1]
    columns = np.concatenate([one.columns, other.columns], 1)
    return _figure(lambda means: one.statistic(means[..., :k]) - other.statistic(means[..., k:]), columns, seed)


def _figure(statistic: Statistic, columns: np.ndarray, seed: int) -> Figure:
    people = len(columns)
    drawn = np.random.default_rng(seed).integers(people, size=(DRAWS, people))
    outside = 100 * (1 - CONFIDENCE) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(columns.mean(0)))
        values = statistic(columns[drawn].mean(1))  # (draws)
    values = values[np.isfinite(values)]  # no tries at all, in a few draws
    if not np.isfinite(value) or len(values) == 0:
        return Figure(np.nan, np.nan, np.nan)
    low, high = np.percentile(values, [outside, 100 - outside])
    return Figure(value, float(low), float(high))
