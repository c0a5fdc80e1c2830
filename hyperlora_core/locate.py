"""From names to a ready PhotoEncoder: the checkpoint and the two encoders, found in a ComfyUI models folder or the demo."""

from pathlib import Path

import torch

from .catalog import load_catalog, shipped_models
from .checkpoint import load_hyperlora
from .encode import PhotoEncoder
from .errors import HyperLoRAError, cli
from .face.analyzer import FaceAnalyzer
from .folders import models_folder, search_folders
from .hyperlora import HyperLoRA
from .vision import VisionEncoder

DEMO = "demo"
DEFAULT = "fidelity"
DEMO_FACES, DEMO_CLIP, DEMO_HYPER = "face", "clip_vision", "hyper_lora"


def demo_folder() -> Path:
    """The shipped small models."""
    return shipped_models() / "demo"


def open_encoder(
    checkpoint: str = DEFAULT,
    face_pack: str | Path | None = None,
    clip: str | Path | None = None,
    models: str | Path | None = None,
    provider: str = "auto",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PhotoEncoder:
    """A PhotoEncoder of a checkpoint: a catalogued name (fidelity, edit), "demo", or a path.

    `face_pack`, `clip`: paths; by default antelopev2 and OpenAI's CLIP ViT-L/14 from the models folder `models` (default:
    ComfyUI's). Raises HyperLoRAError naming what isn't there and the command that fetches it.
    """
    if checkpoint == DEMO:
        clip = clip or demo_folder() / DEMO_CLIP
    hyper = load_hyperlora(find_checkpoint(checkpoint, models), device, dtype)
    return PhotoEncoder(
        hyper,
        FaceAnalyzer.load(face_pack or find_face_pack(checkpoint, models), provider),
        _clip_tower(hyper, clip, models, device, dtype),
    )


def find_checkpoint(checkpoint: str, models: str | Path | None) -> Path:
    """Where a HyperLoRA lies: that of a catalogued name, the demo's, or the path itself."""
    if checkpoint == DEMO:
        return demo_folder() / DEMO_HYPER
    return find_file(checkpoint, models).parent if checkpoint in load_catalog() else Path(checkpoint)


def find_face_pack(checkpoint: str, models: str | Path | None) -> Path:
    """The face pack that a checkpoint is used with where none is given: the demo's own, or antelopev2."""
    return demo_folder() / DEMO_FACES if checkpoint == DEMO else find_file("antelopev2", models)


def _clip_tower(hyper: HyperLoRA, clip, models, device, dtype) -> VisionEncoder | None:
    if hyper.clip_width is None:
        return None
    return VisionEncoder.load(clip or find_file("clip-vision", models), device, dtype)


def find_file(item: str, models: str | Path | None) -> Path:
    """Where the first file of a catalogued item lies, beside its others. Raises HyperLoRAError when it isn't there or is
    broken."""
    folders, known = search_folders(models_folder(models)), load_catalog()[item]
    file = known.files[0]
    found = known.find(folders)[0] or file.find(folders)
    if found is None:
        raise HyperLoRAError(f"{item} is not in {folders[0]} ({file.path}). Run: {cli(f'download {item}')}")
    return found
