"""Coefficients that belong to people instead of being read from photos: an auto-decoder (DeepSDF, arXiv 1901.05103).

A network that reads has to find out of noisy pictures, all at once, which bases people need, what makes them differ, and
where in a photo that is to be seen. Here the bases and each person's coefficients are learned alone; a reader is
fitted to them afterwards (reader.py). Not in HyperLoRA's paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import HyperLoRAError
from ..hyperlora import VECTORS_PER_MODULE
from .network import Network, normed

PEOPLE = "people"  # among the conditions of a stage
AWAY = "people.away"  # the coefficients in a stage's checkpoint


@dataclass(frozen=True)
class PeopleConfig:
    """Whose coefficients are learned, and how fast."""

    people: int  # the first so many of the training people
    start: float  # deviation of the coefficients as they begin, summed over the K - 1 free ones
    pace: float  # they learn at so many times the rate


class FreeCoefficients(nn.Module):
    """Coefficients of `config.people` people: (1, what is theirs) at length 1; on average over people nothing is theirs."""

    def __init__(self, network: Network, config: PeopleConfig, people: np.ndarray, seed: int):
        super().__init__()
        network.leave_room()
        vectors, k = VECTORS_PER_MODULE * len(network.hyper.module_names), network.hyper.basis.size
        self.seeds = learned_people(people, config)
        noise = torch.randn(config.people, vectors, k - 1, generator=torch.Generator().manual_seed(seed))
        self.away = nn.Parameter(noise * (config.start / k**0.5))

    def forward(self, who: Tensor) -> Tensor:
        """Numbers of people [n] -> coefficients [n, 8 * modules, K]."""
        theirs = (self.away - self.away.mean(0))[who]
        return with_room(theirs)

    def rows(self, people: np.ndarray) -> np.ndarray:
        """The photos that show one of them, by the person in each photo [photos]."""
        return np.flatnonzero(np.isin(people, self.seeds))

    def numbers(self, people: np.ndarray) -> Tensor:
        """The persons [n] as numbers [n]."""
        return torch.from_numpy(np.searchsorted(self.seeds, people))


def learned_people(people: np.ndarray, config: PeopleConfig) -> np.ndarray:
    """Who has coefficients of their own, in their order, of the people in the photos [photos]."""
    seeds = np.unique(people)[: config.people]
    if len(seeds) < config.people:
        raise HyperLoRAError(f"people.people is {config.people}, but the training pictures show {len(seeds)} people.")
    return seeds


def with_room(theirs: Tensor) -> Tensor:
    """The K - 1 coefficients that are a person's [..., K - 1] -> all [..., K], at length 1."""
    return normed(torch.cat([torch.ones_like(theirs[..., :1]), theirs], -1))


def check_people(config: PeopleConfig | None, conditions: Sequence[str]) -> None:
    """Raise HyperLoRAError where a stage with people's own coefficients asks for what it can't have."""
    if tuple(conditions) != (PEOPLE,):
        raise HyperLoRAError(f"stage.conditions names {PEOPLE}, beside which no photo is read: leave the others out.")
    if config is None:
        raise HyperLoRAError(f"stage.conditions names {PEOPLE}: the config must have a section [people].")
    if config.people < 2:
        raise HyperLoRAError(f"people.people is {config.people}: what makes people differ takes 2 or more.")
