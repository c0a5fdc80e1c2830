"""HyperLoRA as a method to evaluate."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..encode import PhotoEncoder
from ..errors import HyperLoRAError
from ..fingerprint import fingerprint
from ..identity import Identity
from ..lora import merge_branches
from ..photo import PhotoSource
from ..prompt import with_trigger
from .paint import Job, Painter
from .protocol import Method


class HyperLoRAPainter:
    """A `PersonPainter`: the base model with a LoRA from the photos."""

    follows_prompt = True

    def __init__(self, encoder: PhotoEncoder, painter: Painter):
        self.encoder, self.painter = encoder, painter

    @property
    def settings(self) -> dict[str, object]:
        """The base model's, the HyperLoRA's and those of the networks that it reads photos with."""
        files = sorted(Path(model.model_file) for model in self.encoder.faces.app.models.values())
        faces = hashlib.sha256()
        for file in files:
            faces.update(file.read_bytes())
        vision = self.encoder.vision
        return {
            **self.painter.settings,
            "hyperlora": self.encoder.hyper.fingerprint,
            "face pack": faces.hexdigest()[:16],
            "clip": None if vision is None else fingerprint(vision.tower),
        }

    def check(self, method: Method) -> None:
        """Raise HyperLoRAError where the method needs a base branch, and the checkpoint has none."""
        if method.base_weight and not self.encoder.hyper.has_base:
            raise HyperLoRAError(
                f'"{method.name}" needs a base branch, which {method.checkpoint} doesn\'t have: '
                'measure it as "ID only", or with --base-weight 0.'
            )

    def encode(self, photos: Sequence[PhotoSource]) -> Identity:
        """The person in the photos. Raises HyperLoRAError without a face."""
        return self.encoder.encode(photos).identity

    def job(self, method: Method, who: Identity, prompt: str, seed: int) -> Job:
        """A picture with the person's LoRA at the method's weights, behind the trigger words if it wants them."""
        hyper = self.encoder.hyper
        base = hyper.lora(who.base_coefficients, "base") if method.base_weight else None
        lora = merge_branches(hyper.lora(who.coefficients), base, method.id_weight, method.base_weight)
        return Job(with_trigger(prompt) if method.trigger else prompt, seed, lora, method.guide)

    def paint(self, jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """uint8 [h, w, 3] each, in the size that the base model was made for."""
        return self.painter.paint(jobs, progress)
