"""The ID branch's reader, fitted to what the stage id-people found: photos in, the people's coefficients out.

One person's coefficients are mostly noise: each was learned on a few pictures. What photos tell of them is a ridge
regression over all people, from the face embedding and the CLIP tokens together, in closed form. The resampler then learns to
say what the regression says, of every photo there is; no UNet is asked. Not in HyperLoRA's paper.
"""

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
from .features import FEATURES, RowCache, token_cache
from .loop import CHECKPOINT, Draw, load_trained_config, trained_values
from .network import Network
from .people import AWAY, PEOPLE, learned_people, with_room
from .sources import Sources

if TYPE_CHECKING:
    from .photos import Photos

CONDITIONS = ("embedding", "clip")
SOME = 256  # photos for the mean and the variance
BLOCK = 1024  # photos whose tokens are in memory at once
NEAR = 0.1  # size of the untrained reader's answers beside the coefficient that is no LoRA's


@dataclass(frozen=True)
class ReaderConfig:
    """What is read, and how much of it is believed."""

    start: tuple[str, ...]  # folders of the stages that came before, the last one that of id-people
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

    def forward(self, embeds: Tensor, tokens: Tensor, coefficients: Tensor) -> dict[str, Tensor]:
        """embeds [n, 512]; tokens [n, t, c]; coefficients [n, 8 * modules, K]. The loss is 1 for who tells nobody apart."""
        read = self.network.coefficients(embeds, tokens)
        return {"coefficients": (read.float() - coefficients).square().mean() / self.variance}


class ReaderTask:
    """All photos, and what the regression says of them."""

    def __init__(self, config: Config, photos: "Photos", vision: VisionEncoder, network: Network,
                 own: tuple[np.ndarray, Tensor], cache: Path):  # fmt: skip
        """`own`: the people whose coefficients are known (seeds [p]), and these [p, 8 * modules, K - 1]."""
        self.photos = photos
        self.tokens = token_cache(photos, vision, "identity", cache, lambda: next(network.parameters()).device)
        network.choose(config.reader.trains)
        some = np.unique(np.linspace(0, len(photos) - 1, SOME).astype(int))
        network.centre("embedding", torch.from_numpy(photos.embeddings(some)))
        network.centre("clip", torch.from_numpy(self.tokens.get(some)))
        _begin_at_nobody(network)
        self.read = _Regression(config.reader, photos, self.tokens, *own)
        self.module = Reading(network, float(with_room(self.read(some)).var(0).mean()))

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rows = draw.rng.integers(len(self.photos), size=draw.batch)
        return {
            "embeds": torch.from_numpy(self.photos.embeddings(rows)).to(draw.device),
            "tokens": torch.from_numpy(self.tokens.get(rows)).to(draw.device),
            "coefficients": with_room(self.read(rows)).to(draw.device),
        }

    def sheet(self) -> Image.Image | None:
        return None


class _Regression:
    """Ridge regression from photos to people's coefficients: rows [k] -> [k, 8 * modules, K - 1]."""

    def __init__(self, config: ReaderConfig, photos: "Photos", tokens: RowCache, seeds: np.ndarray, away: Tensor):
        self.photos, self.tokens = photos, tokens
        random = torch.Generator().manual_seed(0)
        wide = int(np.prod(tokens.values.shape[1:]))
        self.projection = torch.randn(wide, config.directions, generator=random) / config.directions**0.5
        rows = np.flatnonzero(np.isin(photos.people, seeds))
        parts = [self._seen(rows[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
        embeds, seen = (torch.cat(of) for of in zip(*parts, strict=True))
        self.means = embeds.mean(0), seen.mean(0)
        self.scales = 1 / embeds.std(), config.tokens / seen.std()
        x = self._inputs(embeds, seen).double()  # (m, c)
        y = away[np.searchsorted(seeds, photos.people[rows])].flatten(1).double()  # (m, 8 * modules * (K - 1))
        covariance = x.T @ x
        covariance += config.ridge * covariance.trace() / len(covariance) * torch.eye(len(covariance))
        self.weight = torch.linalg.solve(covariance, x.T @ y).float() * config.gain
        self.shape = away.shape[1:]

    def _seen(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        tokens = torch.from_numpy(self.tokens.get(rows)).flatten(1)
        return torch.from_numpy(self.photos.embeddings(rows)).float(), tokens @ self.projection

    def _inputs(self, embeds: Tensor, seen: Tensor) -> Tensor:
        parts = zip((embeds, seen), self.means, self.scales, strict=True)
        return torch.cat([(part - mean) * scale for part, mean, scale in parts], 1)

    def __call__(self, rows: np.ndarray) -> Tensor:
        return (self._inputs(*self._seen(rows)) @ self.weight).unflatten(1, self.shape)


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
    checkpoint = sources.root / config.reader.start[-1] / CHECKPOINT
    people = load_trained_config(checkpoint, stage.Config).people
    values = trained_values(checkpoint)
    if people is None or AWAY not in values:
        raise HyperLoRAError(f"{checkpoint} holds no people's own coefficients: reader.start must end with id-people.")
    own = learned_people(photos.people, people), values[AWAY] - values[AWAY].mean(0)
    return ReaderTask(config, photos, vision, network, own, sources.data / FEATURES)


def check(config: Config) -> None:
    """Raise HyperLoRAError for a config whose parts don't fit together."""
    if config.hyperlora.conditions != CONDITIONS:
        raise HyperLoRAError(f"hyperlora.conditions must be {list(CONDITIONS)}: the reader is fitted to both.")
    if not config.reader.start:
        raise HyperLoRAError(
            f'reader.start must end with the folder of a stage with conditions = ["{PEOPLE}"] (id-people).'
        )
    if min(config.reader.directions, config.reader.ridge, config.reader.gain) <= 0:
        raise HyperLoRAError("reader.directions, reader.ridge and reader.gain must be above 0.")


def export(sources: Sources, name: str, folder: Path) -> Path:
    """Write the checkpoint folder of the reader and of the stages before it; returns it."""
    checkpoint = sources.root / name / CHECKPOINT
    config = load_trained_config(checkpoint, Config)
    unet, start = load_pipeline(sources.base, device="cpu").unet, (*config.reader.start, name)
    network = stage.start_network(config.hyperlora, config.loop.seed, unet, sources.root, start)
    network.save(folder, open_photos(sources.data).recognition)
    return folder
