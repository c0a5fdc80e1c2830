"""When a person takes part: limits, and LoRAs that rest beside the layers."""

import math

import pytest
from bad_inputs import assert_sentence

from hyperlora_core import HyperLoRAError
from hyperlora_core.schedule import ALWAYS, Schedule

STEPS = [10.0, 7.0, 5.0, 2.0, 0.5]  # noise levels of a sampler


def sigma_at(share: float) -> float:
    """As the host has it: everything before the start, nothing after the end."""
    return math.inf if share <= 0 else 10 * (1 - share)


def taking_part(schedule: Schedule) -> list[float]:
    return [sigma for sigma in STEPS if schedule.covers(sigma, sigma_at)]


def by_turns(schedule: Schedule) -> list[float]:
    """The same by the strengths that the turns give, as the host's keyframes do: the last that has begun counts."""
    return [sigma for sigma in STEPS if [on for share, on in schedule.turns if sigma_at(share) >= sigma][-1]]


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        (0, 1, STEPS),
        (0.3, 1, [7.0, 5.0, 2.0, 0.5]),
        (0, 0.5, [10.0, 7.0]),
        (0.3, 0.75, [7.0, 5.0]),
        (0.99, 1, []),
    ],
)
def test_steps_that_take_part(start, end, wanted):
    """The start belongs to it, the end doesn't; merge (turns) and bypass (covers) agree."""
    schedule = Schedule(start, end)
    assert taking_part(schedule) == wanted
    assert by_turns(schedule) == wanted


def test_always():
    assert ALWAYS.always and Schedule(0, 1).always
    assert not Schedule(0, 0.99).always and not Schedule(0.01, 1).always


@pytest.mark.parametrize(
    ("start", "end"), [(0.5, 0.5), (0.8, 0.2), (1, 1), (-0.1, 1), (0, 1.1), (math.nan, 1), (0, math.nan)]
)
def test_no_time_at_all(start, end):
    with pytest.raises(HyperLoRAError) as error:
        Schedule(start, end)
    assert_sentence(str(error.value), [f"from {start:g} to {end:g}", "before the end"])
