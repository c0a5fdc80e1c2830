"""One run of the benchmarks: what is measured, on which device, and the rows so far."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch

from .ceilings import PRECISIONS, Ceilings, Work
from .timing import Call, alternating, samples, waiter


@dataclass(frozen=True)
class Budget:
    """At most this: times the floor, or in the row's own unit."""

    most: float
    of_floor: bool = True

    def __str__(self) -> str:
        return f"{self.most:g} x floor" if self.of_floor else f"{self.most:g}"


@dataclass
class Row:
    """One figure. `floor` in the same unit; `ratio` to it."""

    group: str
    name: str
    value: float
    unit: str
    floor: float | None = None
    samples: list[float] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)  # what the floor comes from, where the ceilings give it
    budget: Budget | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.floor if self.floor else None

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept; None without one."""
        if self.budget is None:
            return None
        measured = self.ratio if self.budget.of_floor else self.value
        return measured is not None and measured <= self.budget.most

    def as_json(self) -> dict[str, object]:
        budget = None if self.budget is None else str(self.budget)
        return asdict(self) | {"ratio": self.ratio, "budget": budget, "kept": self.kept}


@dataclass
class Bench:
    """What all groups need; each adds its rows.

    Budgets are those of the published shape: in the demo's size the calls themselves cost more than the work.
    """

    device: torch.device
    precisions: Sequence[str]
    repetitions: int
    published: bool
    checkpoint: Path
    clip: Path
    face_pack: Path
    photo: Path | None
    people: Sequence[int]
    latent: int
    comfyui: Path | None
    ceilings: Ceilings
    seed: int = 0
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # groups that ended with an error
    starting: Callable[[str], None] = lambda _what: None  # called before each measurement; may raise to stop

    @property
    def precision(self) -> str:
        """The first of those asked for, where one is enough."""
        return self.precisions[0]

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    def add(
        self,
        group: str,
        name: str,
        measured: Sequence[float] | float,
        unit: str = "s",
        works: Sequence[Work] = (),
        floor: float | None = None,
        budget: Budget | None = None,
        note: str = "",
    ) -> Row:
        """A row of measured values. Its floor: given, or that of the works."""
        values = [measured] if isinstance(measured, int | float) else list(measured)
        works = [work for work in works if not work.nothing]
        if works:
            floor = self.ceilings.floor(*works)
        budget = budget if self.published else None
        row = Row(group, name, median(values), unit, floor, values, works, budget, note)
        self.rows.append(row)
        return row

    def time(
        self, group: str, name: str, call: Call, *works: Work, budget: Budget | None = None, note: str = ""
    ) -> Row:
        """The same for the seconds of a call."""
        self.starting(f"{group}: {name}")
        measured = samples(call, self.repetitions, waiter(self.device))
        return self.add(group, name, measured, works=works, budget=budget, note=note)

    def alternate(self, group: str, calls: Sequence[Call]) -> list[list[float]]:
        """Seconds of several calls that are to be compared."""
        self.starting(group)
        return alternating(calls, self.repetitions, waiter(self.device))
