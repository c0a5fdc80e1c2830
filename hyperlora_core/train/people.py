"""Codes that belong to people instead of being read from photos: an auto-decoder (DeepSDF, arXiv 1901.05103).

A network that reads has to find out of noisy pictures, all at once, which bases people need, what makes them differ, and
where in a photo that is to be seen. Here a person is a code of a few numbers, which begins at what is most reliable in the face
embedding, and is then learned, together with the bases and the linear function from codes to coefficients. A reader is
fitted to them afterwards (reader.py). What photos of one person may show or not has coefficients of its own (words.py). Not in
HyperLoRA's paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..basis import VECTORS_PER_MODULE
from ..errors import HyperLoRAError
from ..face.analyzer import EMBEDDING_SIZE
from .network import Network, normed

if TYPE_CHECKING:
    from .photos import Photos

PEOPLE = "people"  # among the conditions of a stage
CODES, DIRECTIONS, WORDS = "people.codes", "people.directions", "people.words"  # in a stage's checkpoint
LEAST = 1e-4  # of the embeddings' mean variance: directions with less than about that are not looked at


@dataclass(frozen=True)
class PeopleConfig:
    """Whose codes are learned, how long these are, and how fast they learn."""

    people: int  # the first so many of the training people
    code: int  # numbers in a code
    start: float  # deviation of the coefficients as they begin, over all K - 1 free ones, where codes have deviation 1
    pace: float  # the codes learn at so many times the rate


class FreeCoefficients(nn.Module):
    """Coefficients of `config.people` people: (1, what is theirs) at length 1; on average over people nothing is theirs.

    What is shown of `words` words adds to what is theirs. With words these are trained, and the people are as they are.
    """

    def __init__(self, network: Network, config: PeopleConfig, photos: "Photos", seed: int, words: int = 0):
        super().__init__()
        if not words:  # else the bases are trained already
            network.leave_room()
        vectors, k = VECTORS_PER_MODULE * len(network.hyper.module_names), network.hyper.basis.size
        self.seeds = learned_people(photos.people, config)
        self.codes = nn.Parameter(self._read(photos, config.code))
        noise = torch.randn(config.code, vectors, k - 1, generator=torch.Generator().manual_seed(seed))
        self.directions = nn.Parameter(noise * (config.start / (config.code * k) ** 0.5))
        self.words = nn.Parameter(torch.zeros(words, vectors, k - 1)) if words else None
        for parameter in (self.codes, self.directions):
            parameter.requires_grad_(not words)

    def forward(self, who: Tensor, shown: Tensor | None = None) -> Tensor:
        """Numbers of people [n], 1 for each word to be shown [n, words] -> coefficients [n, 8 * modules, K]."""
        own = theirs(self.codes, self.directions, who)
        return with_room(own if shown is None else own + of_words(shown, self.words))

    def take_over(self, trained: Mapping[str, Tensor], source: str) -> None:
        """Begin with what the stages before it (`source`) learned of people. Raises HyperLoRAError if that doesn't fit."""
        for name, own in ((CODES, self.codes), (DIRECTIONS, self.directions)):
            if name not in trained or trained[name].shape != own.shape:
                raise HyperLoRAError(
                    f"{source} holds no codes of these people: stage.start must end with id-people, and both stages "
                    "have the same [people]."
                )
            own.data.copy_(trained[name])

    def rows(self, people: np.ndarray) -> np.ndarray:
        """The photos that show one of them, by the person in each photo [photos]."""
        return np.flatnonzero(np.isin(people, self.seeds))

    def numbers(self, people: np.ndarray) -> Tensor:
        """The persons [n] as numbers [n]."""
        return torch.from_numpy(np.searchsorted(self.seeds, people))

    def _read(self, photos: "Photos", count: int) -> Tensor:
        """The codes as they begin [people, count]."""
        rows = self.rows(photos.people)
        who = np.searchsorted(self.seeds, photos.people[rows])
        embeds = photos.embeddings(rows).astype(np.float64)
        read = embeds @ reliable_directions(embeds, who, count)  # (photos, count)
        return torch.from_numpy(means_by(read, who)).float()


def reliable_directions(embeds: np.ndarray, who: np.ndarray, count: int) -> np.ndarray:
    """What differs between people and least between photos of one: linear discriminants, most reliable first.

    embeds [photos, 512], of the people numbered `who` [photos] -> [512, count]; along each, the embeddings' variance is the
    share of it that lies between people.
    """
    centred = embeds - embeds.mean(0)
    within = centred - means_by(centred, who)[who]
    total = centred.T @ centred / len(embeds)
    between = total - within.T @ within / max(len(embeds) - who.max() - 1, 1)
    variances, axes = np.linalg.eigh(total)
    whiten = axes / np.sqrt(variances.clip(0) + LEAST * variances.mean())  # (512, 512)
    shares, axes = np.linalg.eigh(whiten.T @ between @ whiten)
    best = np.argsort(-shares)[:count]
    return whiten @ axes[:, best] * np.sqrt(shares[best].clip(0))


def means_by(values: np.ndarray, who: np.ndarray) -> np.ndarray:
    """Means over the rows of each person: values [n, c], who [n] in 0..p-1 -> [p, c]."""
    sums = np.zeros((who.max() + 1, values.shape[1]))
    np.add.at(sums, who, values)
    return sums / np.bincount(who)[:, None]


def theirs(codes: Tensor, directions: Tensor, who: Tensor | slice = slice(None)) -> Tensor:
    """codes [people, c], directions [c, l, K - 1] -> the coefficients that are theirs [n, l, K - 1]."""
    return torch.einsum("nc,clk->nlk", (codes - codes.mean(0))[who], directions)


def of_words(shown: Tensor, words: Tensor) -> Tensor:
    """shown [n, w], words [w, l, K - 1] -> what they add to what is theirs [n, l, K - 1]."""
    return torch.einsum("nw,wlk->nlk", shown, words)


def trained_coefficients(checkpoint: Mapping[str, Tensor]) -> Tensor | None:
    """What is theirs [people, l, K - 1] by a checkpoint of the stage; None for another stage's."""
    if CODES not in checkpoint:
        return None
    return theirs(checkpoint[CODES], checkpoint[DIRECTIONS])


def learned_people(people: np.ndarray, config: PeopleConfig) -> np.ndarray:
    """Who has a code, in their order, of the people in the photos [photos]."""
    seeds = np.unique(people)[: config.people]
    if len(seeds) < config.people:
        raise HyperLoRAError(f"people.people is {config.people}, but the training pictures show {len(seeds)} people.")
    return seeds


def with_room(own: Tensor) -> Tensor:
    """The K - 1 coefficients that are a person's [..., K - 1] -> all [..., K], at length 1."""
    return normed(torch.cat([torch.ones_like(own[..., :1]), own], -1))


def check_people(config: PeopleConfig | None, conditions: Sequence[str]) -> None:
    """Raise HyperLoRAError where a stage with people's own coefficients asks for what it can't have."""
    if tuple(conditions) != (PEOPLE,):
        raise HyperLoRAError(f"stage.conditions names {PEOPLE}, beside which no photo is read: leave the others out.")
    if config is None:
        raise HyperLoRAError(f"stage.conditions names {PEOPLE}: the config must have a section [people].")
    if config.people < 2:
        raise HyperLoRAError(f"people.people is {config.people}: what makes people differ takes 2 or more.")
    if not 1 <= config.code <= EMBEDDING_SIZE:
        raise HyperLoRAError(f"people.code is {config.code}: a code has 1 to {EMBEDDING_SIZE} numbers.")
