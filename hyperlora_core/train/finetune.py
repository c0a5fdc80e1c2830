"""Fine-tuning of one LoRA file on photos of its person: its down and up matrices are trained beside the frozen SDXL.

HyperLoRA's authors advise, for a LoRA that it generated, 768 px face crops, batches of 4, a rate of 1e-4, CLIP skip 2,
frozen text encoders and about 50 steps.
"""

import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..basis import LoRA
from ..errors import HyperLoRAError
from ..fingerprint import fingerprint
from ..inject import LowRank
from ..lora import DOWN, UP, pairs
from ..pipeline import check_fits_unet, load_pipeline
from ..prompt import with_trigger
from .config import LoopConfig
from .denoising import BesideUNet, DenoisingTask, spread
from .diffusion import check_weights
from .drawn import open_photos
from .loop import CHECKPOINT, Draw
from .sheets import sheet
from .trained import Trained

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

    from .photos import Photos

MATRICES = {"down": DOWN, "up": UP}  # as TunedLoRA calls them, and a LoRA dict


@dataclass(frozen=True)
class TuneConfig:
    """On what a LoRA is tuned; the keys are those of the stages."""

    caption_dropout: float  # chance that nothing but the trigger words is left of a caption
    face_weight: float  # weight of the loss inside the face's box; 1: as everywhere
    weights: str  # of diffusion.WEIGHTS
    steps_drawn: tuple[float, ...]  # mean and deviation of the steps' logits (diffusion.py); empty: all alike
    checkpointing: bool  # compute the UNet's activations twice instead of keeping them
    sheet_guidance: float
    sheet_steps: int


@dataclass(frozen=True)
class Origin:
    """Fingerprints of what a run works on: with another LoRA, base or other photos it can't be resumed."""

    lora: str
    base: str
    photos: str


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    tune: TuneConfig
    origin: Origin | None = None  # not in files: put there from the task's


class TunedLoRA(BesideUNet):
    """A LoRA in training with the frozen UNet that it is beside."""

    def __init__(self, lora: LoRA, unet: nn.Module, config: TuneConfig):
        given = list(pairs(lora))
        super().__init__(unet, [pair.key for pair in given], config)
        self.scales = {pair.key: pair.scale for pair in given}
        self.down = nn.ParameterDict({pair.key: pair.down.float().clone() for pair in given})  # each [r, in]
        self.up = nn.ParameterDict({pair.key: pair.up.float().clone() for pair in given})  # each [out, r]

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
        """See DenoisingTask._noisy for the shapes."""
        inputs = (noisy, steps, text, pooled, time_ids)
        return {"reconstruct": self._errors(inputs, self.low_rank(len(noisy)), noise, weights).mean()}

    def low_rank(self, n: int) -> dict[str, LowRank]:
        """The LoRA at weight 1, the same for n pictures."""
        return {
            key: LowRank(self.down[key].T.expand(n, -1, -1), (self.up[key].T * scale).expand(n, -1, -1))
            for key, scale in self.scales.items()
        }


class TuneTask(DenoisingTask):
    """Photos of one person, noisy, their captions with trigger words."""

    def __init__(
        self, config: TuneConfig, lora: LoRA, photos: "Photos", rows: np.ndarray, pipeline: "StableDiffusionXLPipeline"
    ):
        super().__init__(config, photos, pipeline, TunedLoRA(lora, pipeline.unet, config))
        self.rows = rows
        self.origin = Origin(
            _digest([lora[name] for name in sorted(lora)]),
            fingerprint(pipeline.unet),
            _digest([torch.from_numpy(photos.embeddings(rows))]),
        )
        self.before = {
            key: LowRank(*(t.detach().clone() for t in pair)) for key, pair in self.module.low_rank(1).items()
        }

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rows = self.rows[draw.rng.integers(len(self.rows), size=draw.batch)]
        return self._noisy(rows, self.photos.captions(rows), np.ones(len(rows), bool), draw)

    def sheet(self) -> Image.Image:
        """Photos, and below each what is painted of its caption: with the LoRA as it came, and as it is now."""
        rows, device = spread(self.rows), self.module.unet.device
        prompts = [with_trigger(caption) for caption in self.photos.captions(rows)]
        before = {
            key: LowRank(*(t.to(device).expand(len(rows), -1, -1) for t in pair)) for key, pair in self.before.items()
        }
        loras = (before, self.module.low_rank(len(rows)))
        return sheet([self.photos.pictures(rows)[0], *(self._paint(prompts, lora) for lora in loras)])


def make_task(config: Config, lora: LoRA, folder: str | Path, base: str | Path, person: int | None = None) -> TuneTask:
    """`lora` on the photos in `folder` (drawn ones, or of `hyperlora prepare`), beside the base model `base`.

    `person`: whose photos, by number, where the folder has those of several; see `Photos.people`. Raises HyperLoRAError
    for a LoRA that doesn't fit the base or can't learn, and for a folder that doesn't say whose photos are meant.
    """
    check_weights(config.tune.weights, "tune")
    for pair in pairs(lora):
        if not pair.scale or not math.isfinite(pair.scale):
            raise HyperLoRAError(
                f"The LoRA's {pair.key} has an alpha of {pair.scale * len(pair.down):g}, so it does nothing and learns "
                "nothing: generate or download it again."
            )
    photos = open_photos(folder)
    rows = _rows_of(photos.people, folder, person)
    pipeline = load_pipeline(base, device="cpu")
    check_fits_unet(lora, pipeline.unet, str(base))
    return TuneTask(config.tune, lora, photos, rows, pipeline)


def tuned(lora: LoRA, folder: Path) -> LoRA:
    """What the run in `folder` made of `lora`, under the same names and in the same precision."""
    result = dict(lora)
    for name, value in Trained(folder / CHECKPOINT).values.items():
        matrix, _, key = name.partition(".")
        result[key + MATRICES[matrix]] = value.to(lora[key + MATRICES[matrix]].dtype)
    return result


def what_was_done(config: Config, photos: int, base: str | Path) -> dict[str, str]:
    """Metadata for the file of a tuned LoRA."""
    return {
        "hyperlora.finetune_steps": str(config.loop.steps),
        "hyperlora.finetune_batch": str(config.loop.batch * config.loop.accumulation),
        "hyperlora.finetune_rate": f"{config.loop.rate:g}",
        "hyperlora.finetune_photos": str(photos),
        "hyperlora.finetune_base": Path(base).name,
    }


def _rows_of(people: np.ndarray, folder: str | Path, person: int | None) -> np.ndarray:
    known = np.unique(people)
    if not len(known):
        raise HyperLoRAError(f"{folder} holds no photo with a face: prepare some of the person into it.")
    if person is not None:
        if person not in known:
            raise HyperLoRAError(
                f"{folder} holds no photo of person {person}: the numbers there go from {known[0]} to {known[-1]}."
            )
        return np.flatnonzero(people == person)
    if 1 < len(known) < len(people):  # as many people as photos: prepared without saying who is who
        raise HyperLoRAError(
            f"{folder} holds photos of {len(known)} people, and a LoRA is of one: prepare that person's photos into a "
            f"folder of their own, or give a number (--person {known[0]})."
        )
    return np.arange(len(people))


def _digest(tensors: list[Tensor]) -> str:
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
