"""Photos of a person -> an identity: faces, pictures for CLIP, conditions, coefficients. One call for every front door."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .errors import HyperLoRAError, cli
from .face.analyzer import Face, FaceAnalyzer
from .face.choice import CHOICES
from .face.prepare import base_picture, identity_picture
from .hyperlora import HyperLoRA, photo_shares
from .identity import Identity
from .photo import read_photo
from .vision import VIT_L_TOKENS, VisionEncoder, wrong_tokens
from .weighting import EQUAL, QUALITY, WEIGHTINGS, by_agreement, by_quality, quality

RECOGNITION = "hyperlora.recognition"  # checkpoint metadata: the recognition network that it was trained with
OTHER_PACKS = {"w600k_r50": "buffalo_l", "w600k_mbf": "buffalo_s"}  # known not to be the published checkpoints'
SMALL_FACE = 64  # px; below it recognition networks see an enlarged 112 px face with little in it


@dataclass(frozen=True)
class EncodeOptions:
    """How a photo is read; the defaults are the method's."""

    which: str | int = "largest"  # of several faces: largest, centre, left, right, or an index
    remove_background: bool = True
    grayscale: bool = False  # the ID picture without colour: less of the photo's light in the result
    crop_scale: tuple[float, float, float, float] = (1, 1, 1, 1)  # of the base picture: left, right, top, bottom
    clip_to_photo: bool = True  # of the base picture: no black borders

    def identity_picture(self, photo: np.ndarray, face: Face) -> np.ndarray:
        """What the ID branch's CLIP tokens are of."""
        return identity_picture(photo, face.landmarks, self.remove_background, self.grayscale)

    def base_picture(self, photo: np.ndarray, face: Face) -> np.ndarray:
        """What the base branch's CLIP tokens are of."""
        return base_picture(photo, face.landmarks, self.crop_scale, self.clip_to_photo)


@dataclass(frozen=True)
class Encoded:
    identity: Identity
    crops: list[np.ndarray]  # the ID picture of each photo, uint8 [h, w, 3]
    report: str  # a line per photo, for people
    shares: tuple[float, ...]  # of each photo, summing to 1


class PhotoEncoder:
    """A checkpoint with the two encoders that it reads; `vision` may be missing if the checkpoint reads no CLIP tokens."""

    def __init__(self, hyper: HyperLoRA, faces: FaceAnalyzer, vision: VisionEncoder | None = None):
        if vision is None and hyper.clip_width is not None:
            raise HyperLoRAError(
                f"{hyper.name} reads CLIP tokens, but there is no CLIP image tower: load OpenAI's CLIP ViT-L/14 "
                f"(run: {cli('download clip-vision')})."
            )
        if vision is not None and hyper.clip_width not in (None, vision.width):
            raise HyperLoRAError(
                f"{hyper.name} reads CLIP tokens of {hyper.clip_width} channels, but {vision.name} makes {vision.width}: "
                + (
                    "choose OpenAI's CLIP ViT-L/14."
                    if hyper.clip_width == 1024
                    else "choose the tower that it was trained with."
                )
            )
        if vision is not None and hyper.clip_width is not None and wrong_tokens(vision.width, vision.tokens):
            raise HyperLoRAError(
                f"{vision.name} makes {vision.tokens} tokens of a picture, but {hyper.name} reads {VIT_L_TOKENS}: "
                "choose OpenAI's CLIP ViT-L/14 for 224 pixels, not the one for 336."
            )
        _require_recognition(hyper, faces)
        self.hyper, self.faces, self.vision = hyper, faces, vision

    def encode(
        self,
        photos: Sequence[object],
        options: EncodeOptions = EncodeOptions(),
        weights: Sequence[float] | None = None,
        progress: Callable[[int, int], None] | None = None,
        weighting: str = EQUAL,
    ) -> Encoded:
        """Photos of ONE person (paths, PIL, uint8 arrays [h, w, 3], tensors [h, w, 3] in 0..1) -> identity.

        `weights`: each photo's share, default equal. `weighting`: equal, by quality or by agreement (see weighting.py);
        both given, they are multiplied. `progress(done, total)` is called per photo and may raise to stop.
        Raises NoFaceError or HyperLoRAError naming the photo.
        """
        if len(photos) == 0:
            raise HyperLoRAError("No photo was given: connect or name at least one.")
        if weighting not in WEIGHTINGS:
            raise HyperLoRAError(f"Photo weighting {weighting!r} doesn't exist: use {', '.join(WEIGHTINGS)}.")
        shares = photo_shares(weights, len(photos))  # (n)
        crops, base_crops, embeds, qualities, lines = [], [], [], [], []
        for number, source in enumerate(photos, start=1):
            name = Path(source).name if isinstance(source, str | Path) else f"Photo {number}"
            photo = read_photo(source, None if isinstance(source, str | Path) else name)
            detections = self.faces.detect(photo)
            face = self.faces.describe(photo, self.faces.choose(photo, detections, options.which, name))
            crops.append(options.identity_picture(photo, face))
            if self.hyper.has_base:
                base_crops.append(options.base_picture(photo, face))
            embeds.append(torch.from_numpy(face.embedding))
            if weighting == QUALITY:
                qualities.append(quality(photo, face))
            lines.append(_describe(name, face, len(detections), options.which))
            if progress is not None:
                progress(number, len(photos))

        tokens = None if self.vision is None else self.vision.encode_pictures(crops + base_crops)  # (n or 2 n, t, c)
        n = len(photos)
        if weighting != EQUAL:
            verdict = by_quality(qualities) if weighting == QUALITY else by_agreement(torch.stack(embeds).numpy())
            shares = verdict.shares(shares)
            lines = verdict.added_to(lines, shares)
        identity = Identity(
            coefficients=self.hyper.coefficients(
                clip_tokens=tokens[:n] if self.hyper.uses_clip_tokens else None,
                id_embeds=torch.stack(embeds) if self.hyper.uses_id_embeds else None,
                weights=shares,
            ).cpu(),
            base_coefficients=self.hyper.coefficients(clip_tokens=tokens[n:], weights=shares, branch="base").cpu()
            if self.hyper.has_base
            else None,
            fingerprint=self.hyper.fingerprint,
            checkpoint=self.hyper.name,
            photo_count=n,
        )
        return Encoded(identity, crops, "\n".join(lines), tuple(shares.tolist()))


def parse_weights(text: str) -> list[float] | None:
    """ "1, 1, 0.5" -> [1, 1, 0.5]; nothing -> None, all photos alike."""
    try:
        return [float(word) for word in text.replace(",", " ").split()] or None
    except ValueError as error:
        raise HyperLoRAError(
            f"Photo weights {text!r} aren't numbers: write one per photo, such as 1, 1, 0.5."
        ) from error


def _require_recognition(hyper: HyperLoRA, faces: FaceAnalyzer) -> None:
    """A face embedding of another network is a different language: the result would be nobody, without any error."""
    if not hyper.uses_id_embeds:
        return
    trained_with = hyper.metadata.get(RECOGNITION)
    wrong = faces.recognition_name != trained_with if trained_with else faces.recognition_name in OTHER_PACKS
    if wrong:
        pack = OTHER_PACKS.get(faces.recognition_name, faces.recognition_name)
        raise HyperLoRAError(
            f"{hyper.name} was trained with the face recognition {trained_with or 'of antelopev2 (glintr100)'}, "
            f"but the face pack given is {pack} ({faces.recognition_name}): load the right pack."
        )


def _describe(name: str, face, count: int, which: str | int) -> str:
    width, height = face.box[2] - face.box[0], face.box[3] - face.box[1]
    line = f"{name}: face of {width:.0f} x {height:.0f} px, detection {face.score:.2f}"
    if count > 1:
        line += f", {which if which in CHOICES else f'number {which} (the leftmost is 0)'} of {count} faces"
    if min(width, height) < SMALL_FACE:
        line += "; small: a closer photo gives better pictures"
    return line
