"""The demo's CLIP: an image tower and SDXL's two text encoders, trained against each other on captions (Radford et al.
2021, arXiv 2103.00020).

HyperLoRA reads the tower's last-but-one tokens of a face, so these get a loss of their own: two pictures of one person
must be nearer to each other than to any other person's.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import packages
from ..demo import models, sdxl
from ..demo.portraits import training_identity
from ..demo.tokenizer import sdxl_tokenizers
from .captions import face_caption, picture_caption, surroundings_caption
from .config import LoopConfig
from .data import Data, clip_input
from .loop import CHECKPOINT, Draw
from .sources import Sources
from .trained import Trained

VIEWS = ("picture", "face", "surroundings")


@dataclass(frozen=True)
class CLIPConfig:
    """The contrast's own numbers. A batch holds two pictures of each of half as many people."""

    views: tuple[float, float, float]  # chances of the whole picture, the face cut out, the picture with blurred face
    told: float  # chance that a whole picture's caption also describes the person
    embedding: int  # channels in which pictures and texts meet
    identity_weight: float
    temperature: float  # at the start


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    clip: CLIPConfig


class Contrast(nn.Module):
    """Picture-text contrast for both text encoders, and person contrast on the tower's last-but-one tokens."""

    def __init__(self, config: CLIPConfig, operations=nn):
        super().__init__()
        transformers = packages.require("transformers", "Training CLIP")
        self.config = config
        texts = sdxl.random_models(sdxl.DEMO)
        self.text_encoder, self.text_encoder_2 = texts["text_encoder"], texts["text_encoder_2"]
        self.tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**models.CLIP_VISION))
        width, texts_width = models.CLIP_VISION["hidden_size"], [size.width for size in sdxl.DEMO.text]
        self.picture_heads = nn.ModuleList(operations.Linear(width, config.embedding) for _ in texts_width)
        self.text_heads = nn.ModuleList(operations.Linear(text, config.embedding) for text in texts_width)
        self.person_head = operations.Linear(width, config.embedding)
        self.scales = nn.Parameter(torch.full((3,), -float(np.log(config.temperature))))

    def forward(self, pixels: Tensor, ids: Tensor, ids_2: Tensor, person_visible: Tensor) -> dict[str, Tensor]:
        """pixels [2n, 3, 224, 224]: two pictures of each person side by side; ids, ids_2 [2n, t]: their captions;
        person_visible bool [n]: whether both show the face."""
        seen = self.tower(pixels, output_hidden_states=True)
        pooled = (self.text_encoder(ids).pooler_output, self.text_encoder_2(ids_2).text_embeds)
        losses = {}
        for i, text in enumerate(pooled):
            pictures = functional.normalize(self.picture_heads[i](seen.pooler_output), dim=-1)
            texts = functional.normalize(self.text_heads[i](text), dim=-1)
            logits = self._scale(i) * pictures @ texts.T  # (2n, 2n)
            own = torch.arange(len(logits), device=logits.device)
            losses[f"text {i + 1}"] = (
                functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
            ) / 2
        losses["person"] = self.config.identity_weight * self._person_loss(seen.hidden_states[-2], person_visible)
        return losses

    def _scale(self, i: int) -> Tensor:
        return self.scales[i].clamp(max=float(np.log(100))).exp()

    def _person_loss(self, tokens: Tensor, visible: Tensor) -> Tensor:
        people = functional.normalize(
            self.person_head(tokens[:, 1:].mean(1)), dim=-1
        )  # (2n, c): neighbours are one person
        shown = visible.repeat_interleave(2)
        own = torch.arange(len(people), device=people.device)
        hidden = ~shown | (own[:, None] == own)
        logits = (self._scale(2) * people @ people.T).float().masked_fill(hidden, -1e4)
        losses = functional.cross_entropy(logits, own ^ 1, reduction="none")
        return (losses * shown).sum() / shown.sum().clamp(min=1)


class CLIPTask:
    """Pairs of pictures of one person, each whole, cut out or with its face blurred, and captions that fit."""

    def __init__(self, config: Config, data: Data):
        self.config, self.data = config, data
        self.module = Contrast(config.clip)
        self.tokenizers = sdxl_tokenizers()

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rng, scenes = draw.rng, self.data.scenes
        people = rng.choice(len(self.data) // scenes, draw.batch // 2, replace=False)
        rows = [int(person) * scenes + int(scene) for person in people for scene in rng.permutation(scenes)[:2]]
        views = rng.choice(VIEWS, len(rows), p=self.config.clip.views)
        pixels, captions = torch.empty(len(rows), 3, 224, 224, device=draw.device), []
        for view in VIEWS:
            chosen = np.flatnonzero(views == view)
            if len(chosen):
                pictures = np.stack([self._picture(rows[i], view) for i in chosen])
                for i, picture in zip(chosen, clip_input(pictures, draw.device), strict=True):
                    pixels[i] = picture
        captions = [self._caption(row, view, rng) for row, view in zip(rows, views, strict=True)]
        ids, ids_2 = (
            tokenizer(captions, padding=True, truncation=True, return_tensors="pt").input_ids.to(draw.device)
            for tokenizer in self.tokenizers
        )
        visible = torch.from_numpy((views != "surroundings").reshape(-1, 2).all(1)).to(draw.device)
        return {"pixels": pixels, "ids": ids, "ids_2": ids_2, "person_visible": visible}

    def _picture(self, row: int, view: str) -> np.ndarray:
        arrays = {"picture": self.data.images, "face": self.data.faces, "surroundings": self.data.surroundings}
        return arrays[view][row]

    def _caption(self, row: int, view: str, rng: np.random.Generator) -> str:
        caption, identity = self.data.caption(row), training_identity(int(self.data.people[row]))
        if view == "face":
            return face_caption(caption, identity, rng)
        if view == "surroundings":
            return surroundings_caption(caption, identity, rng)
        return picture_caption(caption, identity, rng) if rng.random() < self.config.clip.told else caption

    def sheet(self) -> None:
        """Nothing to look at: a contrast makes no pictures."""


def make_task(config: Config, sources: Sources, _name: str) -> CLIPTask:
    """The task on drawn portraits."""
    return CLIPTask(config, Data(sources.data))


def trained(root: Path) -> Contrast:
    """The trained pair, frozen."""
    checkpoint = Trained(root / "clip" / CHECKPOINT)
    return checkpoint.fill(Contrast(checkpoint.config(Config).clip))


def export(sources: Sources, _name: str, folder: Path) -> Path:
    """Write text encoders and tower into the demo's folder; returns the tower's file."""
    module = trained(sources.root)
    texts = {"text_encoder": module.text_encoder, "text_encoder_2": module.text_encoder_2}
    sdxl.save_models(folder / models.SDXL_FOLDER, sdxl.DEMO, texts)
    file = folder / models.CLIP_FOLDER / "model.safetensors"
    sdxl.write_json(file.with_name("config.json"), models.CLIP_VISION)
    sdxl.write_half(file, sdxl.prefixed(module.tower.state_dict(), "vision_model"))
    return file
