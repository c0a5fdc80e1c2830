"""Photos with noise, and a frozen SDXL with LoRAs beside its layers that predicts it: what HyperLoRA's stages and the
fine-tuning of one LoRA have in common."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..inject import Injection, LowRank
from ..prompt import with_trigger
from .demo_unet import TextEncoders
from .diffusion import Schedule, face_weights, quick_attention
from .features import encode_pictures
from .loop import Draw

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from .photos import Photos

SHEET_PHOTOS, SHEET_SEED = 8, 0


class DenoisingConfig(Protocol):
    """What is asked of a config's section, whatever else is in it."""

    caption_dropout: float
    face_weight: float
    weights: str
    steps_drawn: tuple[float, ...]
    checkpointing: bool
    sheet_guidance: float
    sheet_steps: int


class BesideUNet(nn.Module):
    """A frozen UNet with LoRAs beside the layers that `keys` name."""

    def __init__(self, unet: nn.Module, keys: Iterable[str], config: DenoisingConfig):
        super().__init__()
        self.unet, self.config = quick_attention(unet.requires_grad_(False)), config
        self.injection = Injection(unet, keys)

    def train(self, mode: bool = True) -> "BesideUNet":
        """The UNet stays as it is sampled with, but for gradient checkpointing, which asks for this mode."""
        super().train(mode)
        self.unet.train(mode and self.config.checkpointing)
        return self

    def _predict(self, inputs: tuple[Tensor, ...], lora: Mapping[str, LowRank]) -> Tensor:
        noisy, steps, text, pooled, time_ids = inputs
        self.injection.set(lora)
        dtype = self.unet.dtype
        conditions = {"text_embeds": pooled.to(dtype), "time_ids": time_ids.to(dtype)}
        return self.unet(
            noisy.to(dtype), steps, encoder_hidden_states=text.to(dtype), added_cond_kwargs=conditions
        ).sample

    def _errors(
        self, inputs: tuple[Tensor, ...], lora: Mapping[str, LowRank], target: Tensor, weights: Tensor
    ) -> Tensor:
        return (weights * (self._predict(inputs, lora).float() - target).square()).mean((1, 2, 3))  # (n,)


class DenoisingTask:
    """Photos with their captions, noisy, for a BesideUNet around `pipeline.unet`."""

    def __init__(
        self, config: DenoisingConfig, photos: "Photos", pipeline: "StableDiffusionXLPipeline", module: BesideUNet
    ):
        self.config, self.photos, self.pipeline, self.module = config, photos, pipeline, module
        if config.checkpointing:
            pipeline.unet.enable_gradient_checkpointing(module.injection.repeat)
        self.schedule = Schedule()
        self.texts = TextEncoders(pipeline.text_encoder, pipeline.text_encoder_2)

    def _noisy(self, rows: np.ndarray, captions: Sequence[str], triggered: np.ndarray, draw: Draw) -> dict[str, Tensor]:
        """The photos of `rows` [n], what is told of each, with trigger words where `triggered` [n] says so: noisy, noise
        [n, 4, h, w]; steps [n]; weights [n, 1, h, w]; text [n, t, c]; pooled [n, p]; time_ids [n, 6]."""
        rng, n, device, config = draw.rng, len(rows), draw.device, self.config
        latents, boxes = self._latents(rows, rng, device)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(device)
        steps = self.schedule.draw(rng, n, config.steps_drawn).to(device)
        dropped = rng.random(n) < config.caption_dropout
        captions = [
            (with_trigger if trigger else str)("" if drop else caption)
            for caption, drop, trigger in zip(captions, dropped, triggered, strict=True)
        ]
        text, pooled = self.texts(captions, device)
        side = self.photos.size
        return {
            "noisy": self.schedule.noisy(latents, noise, steps),
            "noise": noise,
            "steps": steps,
            "weights": self.schedule.weights(steps, config.weights).view(-1, 1, 1, 1)
            * face_weights(boxes, latents.shape[-1], config.face_weight).to(device),
            "text": text,
            "pooled": pooled,
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]], device=device).float().expand(n, -1),
        }

    def _latents(self, rows: np.ndarray, rng: np.random.Generator, device: torch.device) -> tuple[Tensor, np.ndarray]:
        """The pictures, and the faces' boxes as shares of their side."""
        pictures, boxes = self.photos.pictures(rows, rng)
        return self._encode(pictures, device), boxes / self.photos.size

    def _encode(self, pictures: np.ndarray, device: torch.device) -> Tensor:
        pixels = torch.from_numpy(pictures).to(device).movedim(-1, 1).float() / 127.5 - 1
        return encode_pictures(self.pipeline.vae.to(device), pixels)

    def _paint(self, prompts: list[str], lora: Mapping[str, LowRank]) -> np.ndarray:
        """uint8 [n, size, size, 3], for a sheet: always of the same noise."""
        # guidance runs the UNet on the empty prompts' half first
        self.module.injection.set({k: LowRank(v.down.repeat(2, 1, 1), v.up.repeat(2, 1, 1)) for k, v in lora.items()})
        self.pipeline.vae.enable_slicing()  # large pictures decoded side by side take more memory than a training step
        try:
            pictures = self.pipeline.to(self.module.unet.device)(
                prompt=prompts,
                negative_prompt=[""] * len(prompts),
                num_inference_steps=self.config.sheet_steps,
                guidance_scale=self.config.sheet_guidance,
                height=self.photos.size,
                width=self.photos.size,
                generator=torch.Generator().manual_seed(SHEET_SEED),
                output_type="np",
            ).images
        finally:
            self.pipeline.vae.disable_slicing()
            self.module.injection.set(None)
        return (pictures * 255).round().astype(np.uint8)


def spread(rows: np.ndarray) -> np.ndarray:
    """Some of the rows, from all over, for a sheet."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, SHEET_PHOTOS).astype(int))]
