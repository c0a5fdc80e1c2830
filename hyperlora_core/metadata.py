"""What a LoRA file says of itself, in the keys that LoRA managers read (modelspec, kohya's ss_) and in our own."""

import base64
import io
import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .files import written_aside
from .identity import Identity
from .prompt import TRIGGER
from .weights_check import check_safetensors

THUMBNAIL = 256  # px, square: what modelspec recommends
# what a file says of its tensors: `save_lora` writes it anew, or nothing of it
_OF_THE_TENSORS = (
    "ss_network_",
    "sshs_",  # kohya's hashes
    "modelspec.hash_sha256",
    "modelspec.implementation",
    "modelspec.sai_model_spec",
)


def describe(
    title: str,
    identity: Identity | None = None,
    base_weight: float | None = None,
    preview: np.ndarray | None = None,
) -> dict[str, str]:
    """Metadata for `save_lora`; `base_weight`: at which weight the base branch was joined in.

    `preview`: a picture uint8 [h, w, 3], of which a small square goes into the file (modelspec 1.0.1, `thumbnail`).
    """
    metadata = {
        "modelspec.title": title,
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.description": "A person's LoRA, written by HyperLoRA from photos. Use it at 0.75 to 0.85.",
        "modelspec.usage_hint": f"Start the prompt with: {TRIGGER}. Weight 0.75 to 0.85.",
        "modelspec.trigger_phrase": TRIGGER,
        "modelspec.category": "Person",
        "modelspec.tags": "person, face, HyperLoRA",
        "ss_output_name": title,
        # where managers that know nothing of modelspec look for trigger words
        "ss_tag_frequency": json.dumps({"hyperlora": {TRIGGER: 1}}),
    }
    if preview is not None:
        metadata["modelspec.thumbnail"] = thumbnail(preview)
    if identity is not None:
        metadata |= {
            "hyperlora.checkpoint": identity.checkpoint,
            "hyperlora.fingerprint": identity.fingerprint,
            "hyperlora.photo_count": str(identity.photo_count),
        }
    if base_weight is not None:
        metadata["hyperlora.base_weight"] = f"{base_weight:g}"
    return metadata


def kept(path: str | Path) -> dict[str, str]:
    """The metadata of a LoRA file that stays true of another one that is made from it; for `save_lora`."""
    metadata = check_safetensors(path).metadata
    return {key: value for key, value in metadata.items() if not key.startswith(_OF_THE_TENSORS)}


def thumbnail(picture: np.ndarray, size: int = THUMBNAIL) -> str:
    """uint8 [h, w, 3] -> its middle square of `size` pixels as a JPEG in a data URL."""
    jpeg = io.BytesIO()
    ImageOps.fit(Image.fromarray(picture), (size, size)).save(jpeg, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def save_preview(picture: np.ndarray, lora_path: str | Path) -> Path:
    """Write uint8 [h, w, 3] as a PNG beside a LoRA file, under its name: where ComfyUI and other tools look for it."""
    path = Path(lora_path).with_suffix(".png")
    with written_aside(path) as aside:
        Image.fromarray(picture).save(aside, "PNG")
    return path
