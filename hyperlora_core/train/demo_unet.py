"""The demo's text-to-image model: SDXL's UNet, narrow, on the frozen autoencoder and text encoders of `--base`.

As SDXL was trained (Podell et al. 2023, arXiv 2307.01952): noise prediction under its schedule, size and crop as
conditions, captions left out now and then for guidance (Ho and Salimans 2022, arXiv 2207.12598), a moving average of
the weights. Which noise levels count how much: diffusion.py. `demo-style` trains a second model: a trained one goes on, on
portraits drawn in another style.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import packages
from ..demo import models, sdxl
from ..demo.portraits import training_identity
from ..demo.portraits.style import STYLES
from ..demo.tokenizer import POSITIONS, sdxl_tokenizers
from ..errors import HyperLoRAError
from ..fingerprint import fingerprint
from ..pipeline import load_pipeline
from ..prompt import with_trigger
from .captions import picture_caption
from .config import LoopConfig
from .data import SIZE, Data, pictures_to_model
from .diffusion import Schedule, check_weights, face_weights, quick_attention
from .features import FEATURES, RowCache, encode_pictures
from .loop import CHECKPOINT, Draw
from .sheets import sheet
from .sources import Sources
from .trained import Trained

SHEET_SEED = 0
BASE = "base"  # for UNetConfig.start
MOST_KNOWN = 100_000  # captions, 1.2 KB each


@dataclass(frozen=True)
class UNetConfig:
    """The diffusion's own numbers."""

    start: str  # whose weights it begins with: a run's folder in --out, or "base", --base's UNet; empty: untrained
    style: str  # of portraits.style.STYLES; empty: as drawn
    caption_dropout: float  # chance that the caption is empty
    told: float  # chance that another caption also describes the person
    triggered: float  # chance that the trigger words stand before it, so that the model learns to make nothing of them
    other_sizes: float  # chance that the size conditions name another size, because hosts give what users type
    sizes: tuple[int, ...]
    face_weight: float  # weight of the loss inside the face's box; 1: as everywhere
    weights: str  # of diffusion.WEIGHTS
    steps_drawn: tuple[float, ...]  # mean and deviation of the steps' logits; empty: all steps alike
    sheet_guidance: float
    sheet_steps: int


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    unet: UNetConfig


class Denoising(nn.Module):
    """Predict the noise in noisy latents."""

    def __init__(self):
        super().__init__()
        self.unet = quick_attention(sdxl.random_models(sdxl.DEMO)["unet"])

    def forward(
        self,
        noisy: Tensor,
        noise: Tensor,
        steps: Tensor,
        weights: Tensor,
        text: Tensor,
        pooled: Tensor,
        time_ids: Tensor,
    ) -> dict[str, Tensor]:
        """noisy, noise [n, 4, h, w]; steps [n]; weights [n, 1, h, w] of the errors; text [n, t, c]; pooled [n, p]; time_ids [n, 6]."""
        conditions = {"text_embeds": pooled, "time_ids": time_ids}
        predicted = self.unet(noisy, steps, encoder_hidden_states=text, added_cond_kwargs=conditions).sample
        return {"noise": (weights * (predicted.float() - noise).square()).mean()}


class TextEncoders:
    """SDXL's pair, frozen: captions as the UNet reads them."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module):
        self.encoders = (text_encoder, text_encoder_2)
        self.tokenizers = sdxl_tokenizers()
        self.known: dict[str, Tensor] = {}  # caption -> ids [2, 77]: tokenizers are slower than a GPU

    @torch.no_grad()
    def __call__(self, captions: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the last-but-one layers side by side [n, 77, c] and the second encoder's pooled output [n, p]."""
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        self._tokenize([caption for caption in captions if caption not in self.known])
        ids = torch.stack([self.known[caption] for caption in captions], 1).to(device)  # (2, n, 77)
        first, second = (
            encoder.to(device)(part, output_hidden_states=True)
            for encoder, part in zip(self.encoders, ids, strict=True)
        )
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def _tokenize(self, captions: list[str]) -> None:
        if not captions:
            return
        options = {"padding": "max_length", "max_length": POSITIONS, "truncation": True, "return_tensors": "pt"}
        both = [tokenizer(captions, **options).input_ids for tokenizer in self.tokenizers]
        self.known |= dict(zip(captions, torch.stack(both, 1), strict=True))


class UNetTask:
    """Noisy latents of all training portraits with their captions."""

    def __init__(self, config: Config, data: Data, vae: nn.Module, texts: TextEncoders):
        self.config, self.data, self.texts = config.unet, data, texts
        self.module = Denoising()
        self.schedule, self.vae = Schedule(), vae
        # where HyperLoRA's stages keep them too
        folder = data.folder / FEATURES / "_".join(filter(None, ("latents", fingerprint(vae), self.config.style)))
        self.latents = RowCache(folder, len(data), (4, SIZE // 8, SIZE // 8), self._encode)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rng, n = draw.rng, draw.batch
        rows = rng.integers(len(self.data), size=n)
        captions = [self._caption(row, rng) for row in rows]
        steps = self.schedule.draw(rng, n, self.config.steps_drawn).to(draw.device)
        latents = torch.from_numpy(self.latents.get(rows)).to(draw.device)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(draw.device)
        text, pooled = self.texts(captions, draw.device)
        return {
            "noisy": self.schedule.noisy(latents, noise, steps),
            "noise": noise,
            "steps": steps,
            "weights": self.schedule.weights(steps, self.config.weights).view(-1, 1, 1, 1)
            * face_weights(self.data.boxes[rows] / SIZE, latents.shape[-1], self.config.face_weight).to(draw.device),
            "text": text,
            "pooled": pooled,
            "time_ids": self._time_ids(rng, n).to(draw.device),
        }

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        caption = ""
        if rng.random() >= self.config.caption_dropout:
            caption = self.data.caption(row)
            if rng.random() < self.config.told:
                caption = picture_caption(caption, training_identity(int(self.data.people[row])), rng)
        # a model that never met these words was 9 % worse with them, which a HyperLoRA then mends, alike for everybody
        return with_trigger(caption) if rng.random() < self.config.triggered else caption

    def _encode(self, rows: np.ndarray) -> np.ndarray:
        device = next(self.module.parameters()).device
        return encode_pictures(self.vae.to(device), pictures_to_model(self._pictures(rows), device)).cpu().numpy()

    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        pictures = self.data.images[rows]
        return STYLES[self.config.style](pictures) if self.config.style else pictures

    def _time_ids(self, rng: np.random.Generator, n: int) -> Tensor:
        """Original height and width, the crop's corner, target height and width: [n, 6]."""
        side = np.where(rng.random(n) < self.config.other_sizes, rng.choice(self.config.sizes, n), SIZE)
        corner = np.zeros(n)
        return torch.from_numpy(np.stack([side, side, corner, corner, side, side], 1).astype(np.float32))

    def pipeline(self) -> "object":
        """The whole model as diffusers runs it."""
        diffusers = packages.require("diffusers", "Painting samples")
        (tokenizer, tokenizer_2), (encoder, encoder_2) = self.texts.tokenizers, self.texts.encoders
        unet = self.module.unet
        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=self.vae.to(unet.device),
            text_encoder=encoder.to(unet.device),
            text_encoder_2=encoder_2.to(unet.device),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=diffusers.EulerDiscreteScheduler.from_config(sdxl.SCHEDULER_CONFIG),
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sheet(self) -> Image.Image:
        """Portraits, and below each two samples of its caption."""
        rows = self.data.spread(16)
        captions = [self.data.caption(row) for row in rows]
        pipeline, painted = self.pipeline(), []
        for seed in (SHEET_SEED, SHEET_SEED + 1):
            pictures = pipeline(
                prompt=captions,
                negative_prompt=[""] * len(captions),
                num_inference_steps=self.config.sheet_steps,
                guidance_scale=self.config.sheet_guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).images
            painted.append((pictures * 255).round().astype(np.uint8))
        return sheet([self._pictures(rows), *painted])


def make_task(config: Config, sources: Sources, _name: str) -> UNetTask:
    """The task on drawn portraits, with the autoencoder and the text encoders of `sources.base`."""
    check_weights(config.unet.weights, "unet")
    if config.unet.style and config.unet.style not in STYLES:
        raise HyperLoRAError(
            f"unet.style is {config.unet.style!r}. Known styles: {', '.join(STYLES)}; empty is as drawn."
        )
    base = load_pipeline(sources.base, device="cpu")
    texts = TextEncoders(base.text_encoder, base.text_encoder_2)
    task = UNetTask(config, Data(sources.data), base.vae, texts)
    if config.unet.start == BASE:
        task.module.unet.load_state_dict(base.unet.state_dict())
    elif config.unet.start:
        task.module.load_state_dict(trained(sources.root / config.unet.start).state_dict())
    return task


def trained(folder: Path) -> Denoising:
    """The model that a run in `folder` has trained, frozen."""
    return Trained(folder / CHECKPOINT).fill(Denoising())


def export(sources: Sources, name: str, folder: Path) -> Path:
    """Write the UNet into the demo's folder; returns its file."""
    module = trained(sources.root / name)
    sdxl.save_models(folder / models.SDXL_FOLDER, sdxl.DEMO, {"unet": module.unet})
    return folder / models.SDXL_FOLDER / "unet" / sdxl.WEIGHT_FILES["unet"]
