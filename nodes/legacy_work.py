"""What the nodes of the authors' ids do, with our parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..hyperlora_core import FaceAnalyzer, HyperLoRAError, Identity, PhotoEncoder
from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.face.analyzer import Face
from ..hyperlora_core.face.prepare import base_picture, identity_picture
from ..hyperlora_core.hyperlora import HyperLoRA
from ..hyperlora_core.vision import is_clip_tower
from . import folders, host
from .generate import on_cpu

WHOLE_PHOTO = (1e6, 1e6, 1e6, 1e6)  # crop factors that reach every edge


class Config(NamedTuple):
    """Of the many numbers of a HYPER_LORA_CONFIG, what a checkpoint doesn't tell of itself."""

    image_encoder: str
    face_analyzer: str


class LegacyHyperLoRA(host.LoadedHyperLoRA):
    """What a HYPER_LORA wire carries: our HYPERLORA, with the face pack that is loaded along here."""

    def __init__(self, model: str, dtype: str, config: Config):
        super().__init__(checkpoint_path(model), lambda width: clip_tower(config.image_encoder, width), dtype)
        self.faces = FaceAnalyzer.load(folders.face_pack_path(config.face_analyzer))


def checkpoint_names() -> list[str]:
    """As the authors' pack lists them: a folder's own name, wherever it lies."""
    return list(dict.fromkeys(Path(name).name for name in folders.checkpoint_names()))


def checkpoint_path(model: str) -> Path:
    """The first checkpoint of that name; raises HyperLoRAError if there is none."""
    found = (name for name in folders.checkpoint_names() if Path(name).name == model)
    return folders.checkpoint_path(next(found, model))


def clip_tower(name: str, width: int) -> Path:
    """The image encoder of that name (a folder of the authors' tree, or a file) if it has the width; else one that has."""
    for file in folders.clip_tower_names():
        if name in (*Path(file).parts[:-1], Path(file).stem) and file.endswith(".safetensors"):
            path = folders.clip_tower_path(file)
            if is_clip_tower(path, width):
                return path
    return folders.find_clip_tower(width)


def faces_of(loaded: LegacyHyperLoRA, photos: Sequence[np.ndarray]) -> list[Face]:
    """The largest face of each photo."""
    step = host.progress(len(photos))
    faces = []
    for number, photo in enumerate(photos, start=1):
        faces.append(loaded.faces.face(photo, name=f"Photo {number}"))
        step(number, len(photos))
    return faces


def id_condition(
    loaded: LegacyHyperLoRA,
    photos: Sequence[np.ndarray],
    faces: Sequence[Face],
    grayscale: bool,
    remove_background: bool,
) -> tuple[Identity, list[np.ndarray]]:
    """The ID branch's coefficients, and the crops that the network saw."""
    check_faces(photos, faces)
    encoder = PhotoEncoder(loaded.hyper, loaded.faces, loaded.vision)  # checks that the three belong together
    crops = [
        identity_picture(photo, face.landmarks, remove_background, grayscale)
        for photo, face in zip(photos, faces, strict=True)
    ]
    hyper = encoder.hyper
    coefficients = hyper.coefficients(
        clip_tokens=encoder.vision.encode_pictures(crops) if hyper.uses_clip_tokens else None,
        id_embeds=torch.from_numpy(np.stack([face.embedding for face in faces])) if hyper.uses_id_embeds else None,
    )
    return of_checkpoint(hyper, coefficients, len(photos)), crops


def base_condition(
    loaded: LegacyHyperLoRA, photos: Sequence[np.ndarray], faces: Sequence[Face], scale: str | None, clip_to_photo: bool
) -> tuple[Identity, list[np.ndarray]]:
    """The base branch's coefficients (as those of an Identity), and the crops; `scale` None: the whole photo."""
    check_faces(photos, faces)
    hyper = loaded.hyper
    if not hyper.has_base:
        raise HyperLoRAError(
            f"{hyper.name} has no base branch (the published checkpoints have none): take the base nodes out, or load a "
            "checkpoint that was trained with one."
        )
    factors, clip_to_photo = (WHOLE_PHOTO, True) if scale is None else (crop_factors(scale), clip_to_photo)
    crops = [
        base_picture(photo, face.landmarks, factors, clip_to_photo) for photo, face in zip(photos, faces, strict=True)
    ]
    coefficients = hyper.coefficients(clip_tokens=loaded.vision.encode_pictures(crops), branch="base")
    return of_checkpoint(hyper, coefficients, len(photos)), crops


def of_checkpoint(hyper: HyperLoRA, coefficients: torch.Tensor, photo_count: int) -> Identity:
    return Identity(coefficients.cpu(), None, hyper.fingerprint, hyper.name, photo_count)


def lora_of(loaded: LegacyHyperLoRA, condition: Identity, branch: str) -> LoRA:
    """The branch's LoRA, on the CPU. Raises HyperLoRAError for a condition from another checkpoint."""
    condition.require_checkpoint(loaded.hyper)
    return on_cpu(loaded.hyper.lora(condition.coefficients, branch))


def check_faces(photos: Sequence[np.ndarray], faces: Sequence[Face]) -> None:
    """Raise HyperLoRAError unless there is a face for each photo."""
    if len(photos) != len(faces):
        raise HyperLoRAError(
            f"face_attr was made from {len(faces)} photo(s), but there are {len(photos)}: connect both to the same images."
        )


def crop_factors(text: str) -> tuple[float, float, float, float]:
    """ "1,1,1,1" -> left, right, top, bottom."""
    try:
        left, right, top, bottom = (float(word) for word in text.split(","))
    except ValueError as error:
        raise HyperLoRAError(
            f"crop_scale_LRTB {text!r} isn't four numbers (left, right, top, bottom): write them such as 1,1,1,1."
        ) from error
    return left, right, top, bottom
