"""Where a stage finds what it builds on."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sources:
    """`root` holds a folder for each stage; the others are the training pictures and the frozen models."""

    root: Path
    data: Path  # of demo-data, or of `hyperlora prepare`
    base: Path  # SDXL: a file, a diffusers folder, or the demo's folder
    clip: Path  # the CLIP image tower
    faces: Path | None = None  # the face pack that made the pictures' embeddings; for PuLID's identity loss
