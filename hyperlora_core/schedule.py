"""When during sampling a person takes part."""

from collections.abc import Callable
from dataclasses import dataclass

from .errors import HyperLoRAError


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end`, as shares of sampling: 0 is pure noise, 1 the finished picture.

    They count the model's noise levels, as ComfyUI's own start and end do, so that a sampler with more steps or another
    spacing changes at the same moment of the picture. The start belongs to it, the end doesn't.
    Raises HyperLoRAError unless 0 <= start < end <= 1.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if not 0 <= self.start < self.end <= 1:  # also refuses NaN
            raise HyperLoRAError(
                f"The person can't take part from {self.start:g} to {self.end:g} of sampling: "
                "the start must lie before the end, both between 0 and 1."
            )

    @property
    def always(self) -> bool:
        return (self.start, self.end) == (0, 1)

    def covers(self, sigma: float, sigma_at: Callable[[float], float]) -> bool:
        """Whether a step at noise level `sigma` is in it; `sigma_at`: share of sampling -> noise level."""
        return self.always or sigma_at(self.end) < sigma <= sigma_at(self.start)

    @property
    def turns(self) -> list[tuple[float, float]]:
        """(share of sampling, strength from there on), the first at 0."""
        turns = [(self.start, 1.0)] if self.start == 0 else [(0.0, 0.0), (self.start, 1.0)]
        return turns if self.end == 1 else [*turns, (self.end, 0.0)]


ALWAYS = Schedule()
