"""The demo's autoencoder: TAESD's form (8x, 4 channels), trained on crops of the drawn portraits.

There is no larger autoencoder to learn from, as TAESD has: it learns from pictures alone, by their pixels and edges.
Its latents get deviation 1 and stay readable under a little noise, because a diffusion model will write them.
Drawn portraits need fewer than TAESD's 64 channels at the fine levels, where most of its time goes: a narrower network
is trained, and `widened` with zeros to the form that hosts know.
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
from .loop import CHECKPOINT, Draw
from .sheets import sheet
from .sources import Sources
from .trained import Trained

START_PICTURES = 64


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder's own numbers."""

    widths: tuple[int, int, int, int]  # channels at full, half, quarter and eighth size; 64 at most
    crops: tuple[int, ...]  # sides of training crops in pixels, one drawn for a batch; the first gives the batch's size
    latent_noise: float  # deviation of what is added to the latents before they are decoded
    square_weight: float  # of the squared error beside the absolute one: large errors of colour go first
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
        narrow(self.vae, config.widths)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        latents = self.vae.encode(pictures).latents
        decoded = self.vae.decode(latents + self.config.latent_noise * torch.randn_like(latents)).sample.float()
        return {
            "pixels": functional.l1_loss(decoded, pictures),
            "squares": self.config.square_weight * functional.mse_loss(decoded, pictures),
            "edges": self.config.edge_weight * edge_loss(decoded, pictures),
            "moments": self.config.moment_weight * moment_loss(latents.float()),
        }


def narrow(vae: nn.Module, widths: tuple[int, ...]) -> None:
    """Leave an AutoencoderTiny only the first `widths` (full size to eighth) channels of each level."""
    for half, levels in ((vae.encoder, (0, 1, 2, 3)), (vae.decoder, (3, 2, 1, 0))):
        convs = [layer for layer in half.layers.modules() if isinstance(layer, nn.Conv2d)]
        level, given = 0, convs[0].in_channels
        for layer in half.layers.modules():
            if isinstance(layer, nn.Upsample):
                level += 1
            if not isinstance(layer, nn.Conv2d):
                continue
            level += layer.stride == (2, 2)
            taken = layer.out_channels if layer is convs[-1] else widths[levels[level]]
            layer.weight = nn.Parameter(layer.weight.detach()[:taken, :given].clone())
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach()[:taken].clone())
            layer.in_channels, layer.out_channels, given = given, taken, taken


@torch.no_grad()
def widened(vae: nn.Module) -> nn.Module:
    """The same function in TAESD's 64 channels: the others are fed zeros and give zeros."""
    wide = sdxl.random_models(sdxl.DEMO)["vae"]
    narrow_state = vae.state_dict()
    for name, value in wide.state_dict().items():
        value.zero_()
        value[tuple(slice(size) for size in narrow_state[name].shape)] = narrow_state[name]
    return wide


@torch.no_grad()
def start_with_colours(vae: nn.Module, pictures: Tensor, residual: float = 0.1) -> None:
    """Start an AutoencoderTiny as one that passes on each 8 x 8 block's mean colour, on `pictures` [n, 3, h, w].

    Started at random it finds brightness at once and colours thousands of steps later, if at all. The first three
    channels of every layer carry red, green and blue; the other layers keep their input's deviation (He et al. 2015,
    arXiv 1502.01852). Three latents are the colours, whitened; the fourth is free.
    """
    mean, whiten = _whitening(pictures)
    for half in (vae.encoder, vae.decoder):
        convs = [layer for layer in half.layers.modules() if isinstance(layer, nn.Conv2d)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for block in half.layers.modules():
            if hasattr(block, "fuse"):  # a residual block, which hardly counts at first, and not for the colours
                end = [layer for layer in block.conv if isinstance(layer, nn.Conv2d)][-1]
                end.weight *= residual
                end.weight[:3] = 0
        for layer in half.layers:
            if isinstance(layer, nn.Conv2d):
                layer.weight[:3] = 0
                taps = layer.weight[:3, :3]
                eye = torch.eye(3)
                if layer.stride == (2, 2):
                    taps += eye[:, :, None, None] / 9
                else:
                    taps[:, :, 1, 1] = eye
        first, last = convs[0], convs[-1]
        if half is vae.encoder:
            last.weight[:3, :3, 1, 1], last.bias[:3] = whiten, -whiten @ mean
            free = half(pictures)[:, 3]
            last.weight[3] /= free.std()
            last.bias[3] = -free.mean() / free.std()
        else:
            first.weight[:3, :3, 1, 1], first.bias[:3] = torch.linalg.inv(whiten), mean


def _whitening(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [3] and whitening matrix [3, 3] of the colours, in 0..1, of 8 x 8 blocks."""
    colours = functional.avg_pool2d(pictures.add(1).div(2), 8).movedim(1, 0).flatten(1)  # (3, n * h * w)
    values, vectors = torch.linalg.eigh(torch.cov(colours))
    return colours.mean(1), (vectors * values.rsqrt()).T


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
        start_with_colours(
            self.module.vae, pictures_to_model(data.images[data.spread(START_PICTURES)], torch.device("cpu"))
        )

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


def make_task(config: Config, sources: Sources, _name: str) -> VAETask:
    """The task on drawn portraits."""
    return VAETask(config, Data(sources.data))


def trained(root: Path) -> nn.Module:
    """The trained autoencoder as it was trained, frozen."""
    checkpoint = Trained(root / "vae" / CHECKPOINT)
    return checkpoint.fill(Reconstruction(checkpoint.config(Config).vae)).vae


def export(sources: Sources, _name: str, folder: Path) -> Path:
    """Write the trained autoencoder into the demo's folder; returns its file."""
    sdxl.save_models(folder / models.SDXL_FOLDER, sdxl.DEMO, {"vae": widened(trained(sources.root))})
    return folder / models.SDXL_FOLDER / "vae" / sdxl.WEIGHT_FILES["vae"]
