"""What paints: `Painter`, many pictures in one batch of the UNet, each with a LoRA, a prompt and a noise of its own; and
what a method that knows people by their photos has in common with others, `PersonPainter`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import HyperLoRAError
from ..fingerprint import fingerprint
from ..inject import Injection, LowRank
from ..lora import pairs
from ..photo import PhotoSource
from .protocol import Method

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

BATCH = 16  # pictures; twice as many for the UNet under guidance


class Job(NamedTuple):
    """A picture to paint."""

    prompt: str
    seed: int  # of its noise: the same noise in any batch and on every device
    lora: Mapping[str, Tensor] | None = None  # used at weight 1; all of one batch have the same layers and ranks
    guide: bool = False  # the LoRA only for the prompt, not for the negative one: guidance leads to the person, too
    face: np.ndarray | None = None  # the embedding [512] that Arc2Face paints


class PersonPainter(Protocol):
    """A way to people's pictures, whose rows a table compares with those of others."""

    follows_prompt: bool  # else there is nothing to ask CLIP about the prompt

    @property
    def settings(self) -> dict[str, object]:
        """All that decides over a picture besides the photos, the method and the job."""

    def check(self, method: Method) -> None:
        """Raise HyperLoRAError where `method` needs what this lacks."""

    def encode(self, photos: Sequence[PhotoSource]) -> Any:
        """Who is in the photos, for `job`."""

    def job(self, method: Method, who: Any, prompt: str, seed: int) -> Job:
        """A picture of that person."""

    def paint(self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """uint8 [h, w, 3] each."""


class Painter:
    """Paints as `pipeline.render` does after `apply_lora`, up to rounding, but many pictures of many people at once."""

    def __init__(
        self,
        pipeline: "StableDiffusionXLPipeline",
        steps: int = 20,
        cfg: float = 5.0,
        negative: str = "",
        clip_skip: int = 2,
        autocast: torch.dtype | None = None,
    ):
        """`clip_skip` counts as `pipeline.render` does; `autocast`: the precision of the models' products."""
        self.pipeline, self.steps, self.cfg, self.negative, self.clip_skip = pipeline, steps, cfg, negative, clip_skip
        self.autocast = autocast
        self._embeddings: dict[str, tuple[Tensor, ...]] = {}

    @property
    def settings(self) -> dict[str, object]:
        """All that decides over a picture besides its job."""
        return {
            "base model": fingerprint(self.pipeline.unet),
            "steps": self.steps,
            "cfg": self.cfg,
            "negative": self.negative,
            "clip skip": self.clip_skip,
            "precision": str(self.autocast or self.pipeline.unet.dtype).removeprefix("torch."),
        }

    def paint(self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """Paint `jobs` side by side: uint8 [h, w, 3] each, in the size the model was made for.

        `progress(steps done, steps)` may raise to stop. Raises HyperLoRAError when only some jobs have a LoRA.
        """
        loras = [job.lora for job in jobs if job.lora is not None]
        if loras and len(loras) < len(jobs):
            raise HyperLoRAError("Pictures with and without a LoRA can't be painted in one batch: paint them apart.")
        positive, negative, pooled, negative_pooled = (
            torch.cat(parts) for parts in zip(*(self._embed(job.prompt) for job in jobs), strict=True)
        )

        def after_step(_pipeline: object, step: int, _timestep: object, tensors: dict) -> dict:
            if progress is not None:
                progress(step + 1, self.steps)
            return tensors

        guided = self.cfg > 1
        lora = stacked(loras, [not job.guide for job in jobs] if guided else None)
        injection = Injection(self.pipeline.unet, lora)
        try:
            injection.set(lora)
            with torch.autocast(self.pipeline.device.type, self.autocast, enabled=self.autocast is not None):
                pictures = self.pipeline(
                    prompt_embeds=positive,
                    negative_prompt_embeds=negative if guided else None,
                    pooled_prompt_embeds=pooled,
                    negative_pooled_prompt_embeds=negative_pooled if guided else None,
                    num_inference_steps=self.steps,
                    guidance_scale=self.cfg,
                    generator=[torch.Generator().manual_seed(job.seed) for job in jobs],
                    callback_on_step_end=after_step,
                ).images
        finally:
            injection.remove()
        return [np.asarray(picture) for picture in pictures]

    @torch.no_grad()
    def reconstruct(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Pictures uint8 [h, w, 3], sides multiples of 8, as the autoencoder gives them back: the best that `paint` can
        paint.
        """
        vae, processor = self.pipeline.vae, self.pipeline.image_processor
        dtype, given = vae.dtype, []
        if dtype == torch.float16:
            vae.to(torch.float32)  # SDXL's own overflows in half precision
        try:
            for start in range(0, len(pictures), BATCH):
                pixels = np.stack(pictures[start : start + BATCH]).astype(np.float32) / 127.5 - 1
                coded = vae.encode(torch.from_numpy(pixels).movedim(-1, 1).to(vae.device, vae.dtype))
                latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
                given += processor.postprocess(vae.decode(latents).sample.float())
        finally:
            if vae.dtype != dtype:
                vae.to(dtype)
        return [np.asarray(picture) for picture in given]

    @torch.no_grad()
    def _embed(self, prompt: str) -> tuple[Tensor, ...]:
        """The prompt's and the negative prompt's [1, 77, c] each, then their pooled [1, c]; made once per prompt."""
        if prompt not in self._embeddings:
            self._embeddings[prompt] = self.pipeline.encode_prompt(
                prompt, negative_prompt=self.negative, clip_skip=self.clip_skip - 2
            )
        return self._embeddings[prompt]


def stacked(loras: Sequence[Mapping[str, Tensor]], negative: Sequence[bool] | None = None) -> dict[str, LowRank]:
    """LoRAs of n pictures as what `Injection` takes: down [n, in, r], up [n, r, out].

    With `negative` 2 n of each: first for the negative prompts, all 0 where it says False, then for the prompts.
    """
    by_key: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for lora in loras:
        for key, down, up, scale in pairs(lora):
            by_key.setdefault(key, []).append((down.T, (up * scale).T))
    layers = {}
    for key, matrices in by_key.items():
        downs, ups = (torch.stack(list(side)) for side in zip(*matrices, strict=True))
        if negative is not None:
            kept = torch.tensor(negative, dtype=ups.dtype, device=ups.device)[:, None, None]
            downs, ups = torch.cat([downs, downs]), torch.cat([ups * kept, ups])
        layers[key] = LowRank(downs, ups)
    return layers
