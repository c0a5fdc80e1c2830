"""The demo's autoencoder: TAESD's form (8x, 4 channels), trained on crops of the drawn portraits.

There is no larger autoencoder to learn from, as TAESD has: it learns from pictures alone, by their pixels and edges.
Its latents get deviation 1 and stay readable under a little noise, because a diffusion model will write them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ..demo import models, sdxl
from .config import LoopConfig
from .data import SIZE, Data, pictures_from_model, pictures_to_model
from .loop import CHECKPOINT, Draw, load_trained
from .sheets import sheet


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder's own numbers."""

    crops: tuple[int, ...]  # sides of training crops in pixels, one drawn for a batch; the first gives the batch's size
    latent_noise: float  # deviation of what is added to the latents before they are decoded
    edge_weight: float
    moment_weight: float  # of the latents' distance from mean 0, deviation 1 and uncorrelated channels


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    vae: VAEConfig


class Reconstruction(nn.Module):
    """Reconstruct pictures [n, 3, h, w] from noisy latents."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.vae = sdxl.random_models(sdxl.DEMO)["vae"]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        latents = self.vae.encode(pictures).latents
        decoded = self.vae.decode(latents + self.config.latent_noise * torch.randn_like(latents)).sample.float()
        return {
            "pixels": functional.l1_loss(decoded, pictures),
            "edges": self.config.edge_weight * edge_loss(decoded, pictures),
            "moments": self.config.moment_weight * moment_loss(latents.float()),
        }


def moment_loss(latents: Tensor) -> Tensor:
    """Distance of the channels' means from 0 and of their covariance from the identity; latents [n, c, h, w].

    Without it the channels all learn brightness first, and colours late.
    """
    channels = latents.movedim(1, 0).flatten(1)  # (c, n * h * w)
    mean = channels.mean(1, keepdim=True)
    centred = channels - mean
    covariance = centred @ centred.T / centred.shape[1]
    return mean.square().mean() + (covariance - torch.eye(len(covariance), device=covariance.device)).square().mean()


def edge_loss(one: Tensor, other: Tensor, scales: int = 3) -> Tensor:
    """Mean distance of the horizontal and vertical differences of two pictures, at full, half, quarter size."""
    total = one.new_zeros(())
    for _ in range(scales):
        for dim in (-1, -2):
            total = total + functional.l1_loss(one.diff(dim=dim), other.diff(dim=dim))
        one, other = functional.avg_pool2d(one, 2), functional.avg_pool2d(other, 2)
    return total / (2 * scales)


class VAETask:
    """Random crops of all training portraits, half of them mirrored.

    Small crops bring many colours into a batch; large ones show the networks what lies far from a picture's edge. A
    batch always has about the same number of pixels.
    """

    def __init__(self, config: Config, data: Data):
        self.config, self.data = config, data
        self.module = Reconstruction(config.vae)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        sides = self.config.vae.crops
        side = int(draw.rng.choice(sides))
        n = max(1, round(draw.batch * (sides[0] / side) ** 2))
        crops = np.empty((n, side, side, 3), np.uint8)
        for i, row in enumerate(draw.rng.integers(len(self.data), size=n)):
            top, left = draw.rng.integers(SIZE - side + 1, size=2)
            crop = self.data.images[row, top : top + side, left : left + side]
            crops[i] = crop[:, ::-1] if draw.rng.random() < 0.5 else crop
        return {"pictures": pictures_to_model(crops, draw.device)}

    def sheet(self) -> Image.Image:
        """Portraits above their reconstructions."""
        pictures, vae = self.data.images[self.data.spread(16)], self.module.vae
        decoded = vae.decode(vae.encode(pictures_to_model(pictures, vae.device)).latents).sample
        return sheet([pictures, pictures_from_model(decoded)])


def make_task(config: Config, root: Path) -> VAETask:
    """The task on the portraits in `root`/data."""
    return VAETask(config, Data(root / "data"))


def trained(root: Path) -> nn.Module:
    """The trained autoencoder, frozen."""
    return load_trained(root / "vae" / CHECKPOINT, Config, lambda config: Reconstruction(config.vae)).vae


def export(root: Path, folder: Path) -> Path:
    """Write the trained autoencoder into the demo's folder; returns its file."""
    sdxl.save_models(folder / models.SDXL_FOLDER, sdxl.DEMO, {"vae": trained(root)})
    return folder / models.SDXL_FOLDER / "vae" / sdxl.WEIGHT_FILES["vae"]
