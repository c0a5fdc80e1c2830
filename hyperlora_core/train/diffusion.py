"""Diffusion as training sees it: the noise schedule, which of its steps are drawn, and how much an error counts."""

import numpy as np
import torch
from torch import Tensor, nn

from .. import packages
from ..demo import sdxl
from ..errors import HyperLoRAError

# How a noise prediction's squared error counts at a signal-to-noise ratio: as it is (SDXL's, and HyperLoRA's), less where
# there is hardly any noise (min-SNR: Hang et al. 2023, arXiv 2303.09556), or as the same error of a velocity prediction,
# which counts more where hardly anything but noise is left (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
WEIGHTS = ("plain", "min-snr", "velocity")
MIN_SNR, MOST_VELOCITY = 5.0, 60.0  # min-SNR's gamma; the weight's bound, reached by the last ninth of the steps


class Schedule:
    """SDXL's noise schedule, of 1000 steps."""

    def __init__(self):
        scheduler = packages.require("diffusers", "Training the UNet").EulerDiscreteScheduler
        self.signal = scheduler.from_config(sdxl.SCHEDULER_CONFIG).alphas_cumprod  # float32 [1000]

    def draw(self, rng: np.random.Generator, n: int, logits: tuple[float, ...]) -> Tensor:
        """Draw n steps: uniform, or with `logits` (mean, deviation) logit-normal over the schedule
        (Esser et al. 2024, arXiv 2403.03206, section 3.1)."""
        last = len(self.signal)
        if not logits:
            return torch.from_numpy(rng.integers(last, size=n))
        shares = 1 / (1 + np.exp(-rng.normal(*logits, size=n)))  # (n,), each in 0..1
        return torch.from_numpy((shares * last).astype(np.int64).clip(max=last - 1))

    def noisy(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """latents [n, 4, h, w] with as much of `noise` as `steps` [n] say."""
        signal = self.signal.to(latents.device)[steps].view(-1, 1, 1, 1)
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def weights(self, steps: Tensor, kind: str) -> Tensor:
        """Weights [n] of noise predictions at `steps` [n]; `kind` is one of WEIGHTS."""
        signal = self.signal.to(steps.device)[steps]
        snr = signal / (1 - signal)
        if kind == "min-snr":
            return snr.clamp(max=MIN_SNR) / snr
        if kind == "velocity":
            return (1 + 1 / snr).clamp(max=MOST_VELOCITY)
        return torch.ones_like(snr)


def check_weights(kind: str, section: str) -> None:
    """Raise HyperLoRAError unless `kind` is one of WEIGHTS."""
    if kind not in WEIGHTS:
        raise HyperLoRAError(f"{section}.weights is {kind!r}. Known: {', '.join(WEIGHTS)}.")


def quick_attention(unet: nn.Module) -> nn.Module:
    """Give `unet` (diffusers) the attention whose backward pass is the fastest here, and return it.

    On a processor that is matrix products and a softmax one by one: with PyTorch's fused attention a step takes half as
    long again there.
    """
    if not torch.accelerator.is_available():
        unet.set_attn_processor(
            packages.require("diffusers", "Training the UNet").models.attention_processor.AttnProcessor()
        )
    return unet


def face_weights(boxes: np.ndarray, side: int, weight: float) -> Tensor:
    """Weights [n, 1, side, side] of the latents' errors: `weight` in the boxes [n, 4] (shares of the side), 1 elsewhere,
    divided by their mean, so that the loss keeps its size."""
    centres = (np.arange(side) + 0.5) / side
    left, top, right, bottom = boxes.T[:, :, None]  # each (n, 1)
    across, down = (centres > left) & (centres < right), (centres > top) & (centres < bottom)  # (n, side)
    weights = np.where(down[:, :, None] & across[:, None, :], weight, 1.0)  # (n, side, side)
    return torch.from_numpy(weights / weights.mean((1, 2), keepdims=True)).float()[:, None]
