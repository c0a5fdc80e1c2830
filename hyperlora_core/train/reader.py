"""The ID branch's reader, fitted to what the stage id-people found: photos in, the people's coefficients out.

One person's code is partly noise: it was learned on a few pictures. What photos tell of the coefficients is a ridge regression
over all people, from the face embedding and the CLIP tokens together (or one of them), in closed form. The resampler then
learns to say what the regression says, of every photo there is, and what the words of its caption add that have coefficients
(words.py); no UNet is asked. Not in HyperLoRA's paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..demo.hyperlora import HyperLoRASize
from ..errors import HyperLoRAError
from ..pipeline import load_pipeline
from ..vision import VisionEncoder
from . import stage
from .config import LoopConfig
from .drawn import open_photos
from .features import FEATURES, token_cache
from .loop import CHECKPOINT, Draw
from .network import Network
from .people import PEOPLE, WORDS, learned_people, of_words, trained_coefficients, with_room
from .sources import Sources
from .trained import Trained
from .words import words_shown

if TYPE_CHECKING:
    from .photos import Photos

CONDITIONS = ("embedding", "clip")
SOME = 256  # photos for the mean and the variance
BLOCK = 1024  # photos whose tokens are in memory at once
NEAR = 0.1  # size of the untrained reader's answers beside the coefficient that is no LoRA's


@dataclass(frozen=True)
class ReaderConfig:
    """What is read, and how much of it is believed."""

    start: tuple[str, ...]  # folders of the stages that came before, the last one that of id-people or id-words
    conditions: tuple[str, ...]  # what is read: embedding, clip; who leaves one out has it bypassed
    trains: tuple[str, ...]  # groups, see network.py
    directions: int  # random ones into which a photo's CLIP tokens are projected, for the regression alone
    tokens: float  # their deviation beside the face embedding's
    ridge: float  # of the mean variance of what is read
    gain: float  # the regression's answers, which are cautious, times this


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    hyperlora: HyperLoRASize
    reader: ReaderConfig


class Reading(nn.Module):
    """The network, and how far its coefficients are from what they should be."""

    def __init__(self, network: Network, variance: float):
        super().__init__()
        self.network, self.variance = network, variance

    def forward(
        self, coefficients: Tensor, embedding: Tensor | None = None, clip: Tensor | None = None
    ) -> dict[str, Tensor]:
        """coefficients [n, 8 * modules, K] for embeddings [n, 512], CLIP tokens [n, t, c]; the loss is 1 for who tells nobody
        apart."""
        read = self.network.coefficients(embedding, clip)
        return {"coefficients": (read.float() - coefficients).square().mean() / self.variance}


class ReaderTask:
    """All photos, what the regression says of them, and what the words in their captions add."""

    def __init__(self, config: Config, photos: "Photos", vision: VisionEncoder, network: Network,
                 own: tuple[np.ndarray, Tensor], cache: Path, words: Mapping[str, Tensor] | None = None):  # fmt: skip
        """`own`: the people whose coefficients are known (seeds [p]), and these [p, 8 * modules, K - 1]; `words`: word ->
        what it adds [8 * modules, K - 1]."""
        self.photos, self.words = photos, words or {}
        self.seen = _Seen(config.reader.conditions, photos, vision, network, cache)
        network.choose(config.reader.trains)
        some = np.unique(np.linspace(0, len(photos) - 1, SOME).astype(int))
        for condition, values in self.seen(some).items():
            network.centre(condition, values)
        _begin_at_nobody(network)
        self.read = _Regression(config.reader, photos, self.seen, *own)
        self.module = Reading(network, float(self.wanted(some).var(0).mean()))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rows = draw.rng.integers(len(self.photos), size=draw.batch)
        batch = self.seen(rows) | {"coefficients": self.wanted(rows)}
        return {name: values.to(draw.device) for name, values in batch.items()}

    def wanted(self, rows: np.ndarray) -> Tensor:
        """What is to be read of photos: rows [k] -> [k, 8 * modules, K]."""
        own = self.read(rows)
        if self.words:
            shown = words_shown(self.photos.captions(rows), list(self.words))
            own = own + of_words(shown, torch.stack(list(self.words.values())))
        return with_room(own)

    def sheet(self) -> Image.Image | None:
        return None


class _Seen:
    """What is read of photos: rows [k] -> condition -> embeddings [k, 512] or CLIP tokens [k, t, c]."""

    def __init__(
        self, conditions: tuple[str, ...], photos: "Photos", vision: VisionEncoder, network: Network, cache: Path
    ):
        self.conditions, self.photos, self.tokens = conditions, photos, None
        if "clip" in conditions:
            self.tokens = token_cache(photos, vision, "identity", cache, lambda: next(network.parameters()).device)

    def __call__(self, rows: np.ndarray) -> dict[str, Tensor]:
        seen = {"clip": self.tokens.get(rows)} if self.tokens else {}
        if "embedding" in self.conditions:
            seen["embedding"] = self.photos.embeddings(rows)
        return {condition: torch.from_numpy(seen[condition]) for condition in self.conditions}


class _Regression:
    """Ridge regression from photos to people's coefficients: rows [k] -> [k, 8 * modules, K - 1]."""

    def __init__(self, config: ReaderConfig, photos: "Photos", seen: _Seen, seeds: np.ndarray, away: Tensor):
        self.seen, self.directions, self.projection = seen, config.directions, None
        rows = np.flatnonzero(np.isin(photos.people, seeds))
        blocks = [self._projected(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
        parts = {condition: torch.cat([block[condition] for block in blocks]) for condition in seen.conditions}
        sizes = {"embedding": 1.0, "clip": config.tokens}
        self.means = {condition: part.mean(0) for condition, part in parts.items()}
        self.scales = {condition: sizes[condition] / part.std() for condition, part in parts.items()}
        x = self._inputs(parts).double()  # (m, c)
        y = away[np.searchsorted(seeds, photos.people[rows])].flatten(1).double()  # (m, 8 * modules * (K - 1))
        covariance = x.T @ x
        covariance += config.ridge * covariance.trace() / len(covariance) * torch.eye(len(covariance))
        self.weight = torch.linalg.solve(covariance, x.T @ y).float() * config.gain
        self.shape = away.shape[1:]

    def _projected(self, rows: np.ndarray) -> dict[str, Tensor]:
        seen = {condition: values.flatten(1).float() for condition, values in self.seen(rows).items()}
        if "clip" in seen:
            if self.projection is None:
                random = torch.randn(seen["clip"].shape[1], self.directions, generator=torch.Generator().manual_seed(0))
                self.projection = random / self.directions**0.5
            seen["clip"] = seen["clip"] @ self.projection
        return seen

    def _inputs(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([(part - self.means[name]) * self.scales[name] for name, part in parts.items()], 1)

    def __call__(self, rows: np.ndarray) -> Tensor:
        return (self._inputs(self._projected(rows)) @ self.weight).unflatten(1, self.shape)


def _begin_at_nobody(network: Network) -> None:
    out = network.encoder["resampler"].proj_out
    with torch.no_grad():
        out.weight *= NEAR
        out.bias.zero_()
        out.bias[0] = 1


def make_task(config: Config, sources: Sources, name: str) -> ReaderTask:
    """The reader as it begins, and the coefficients of the stage id-people."""
    check(config)
    photos, vision = open_photos(sources.data), VisionEncoder.load(sources.clip)
    unet = load_pipeline(sources.base, device="cpu").unet
    network = stage.start_network(config.hyperlora, config.loop.seed, unet, sources.root, config.reader.start)
    known = stage.people_known(sources.root, config.reader.start)
    last = Trained(sources.root / config.reader.start[-1] / CHECKPOINT)
    trained, own = last.config(stage.Config), trained_coefficients(known)
    if trained.people is None or own is None:
        raise HyperLoRAError(
            f"{last.path} holds no people's own coefficients: reader.start must end with id-people, or with id-people and "
            "id-words."
        )
    words = dict(zip(trained.words.words, known[WORDS], strict=True)) if trained.words else None
    people = learned_people(photos.people, trained.people)
    return ReaderTask(config, photos, vision, network, (people, own), sources.data / FEATURES, words)


def check(config: Config) -> None:
    """Raise HyperLoRAError for a config whose parts don't fit together."""
    if config.hyperlora.conditions != CONDITIONS:
        raise HyperLoRAError(
            f"hyperlora.conditions must be {list(CONDITIONS)}; reader.conditions says which of them are read."
        )
    read = config.reader.conditions
    if not read or set(read) - set(CONDITIONS):
        raise HyperLoRAError(f"reader.conditions must be one or both of {list(CONDITIONS)}, not {list(read)}.")
    idle = [group for group in config.reader.trains if group not in (*read, "trunk")]
    if idle:
        raise HyperLoRAError(f"reader.trains names {idle[0]}, which nothing goes through with conditions {list(read)}.")
    if not config.reader.start:
        raise HyperLoRAError(
            f'reader.start must end with the folder of a stage with conditions = ["{PEOPLE}"] (id-people).'
        )
    if min(config.reader.directions, config.reader.ridge, config.reader.gain) <= 0:
        raise HyperLoRAError("reader.directions, reader.ridge and reader.gain must be above 0.")


def export(sources: Sources, name: str, folder: Path) -> Path:
    """Write the checkpoint folder of the reader and of the stages before it; returns it."""
    config = Trained(sources.root / name / CHECKPOINT).config(Config)
    unet, start = load_pipeline(sources.base, device="cpu").unet, (*config.reader.start, name)
    network = stage.start_network(config.hyperlora, config.loop.seed, unet, sources.root, start)
    for condition in set(CONDITIONS) - set(config.reader.conditions):
        network.silence(condition)
    network.save(folder, open_photos(sources.data).recognition)
    return folder
