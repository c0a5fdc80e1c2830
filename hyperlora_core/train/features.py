"""What frozen networks make of training pictures, computed once for each row and kept on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..files import first_written
from ..fingerprint import fingerprint

if TYPE_CHECKING:
    from ..vision import VisionEncoder
    from .photos import Photos

FEATURES = "features"  # folder of a data folder
BLOCK = 64  # rows computed at once

Compute = Callable[[np.ndarray], np.ndarray]


class RowCache:
    """An fp16 array on disk whose rows are computed when they are first asked for.

    `compute(rows [k]) -> [k, *shape]`. Name the folder after what computes, see fingerprint.py: another network is
    another cache.
    """

    def __init__(self, folder: Path, rows: int, shape: tuple[int, ...], compute: Compute):
        self.compute = compute
        self.values = memory_mapped(folder / "values.npy", np.float16, (rows, *shape))
        self.known = memory_mapped(folder / "known.npy", np.uint8, (rows,))

    def get(self, rows: np.ndarray) -> np.ndarray:
        """The values of `rows` [k], float32 [k, *shape]."""
        missing = np.unique(rows[self.known[rows] == 0])
        for block in np.split(missing, range(BLOCK, len(missing), BLOCK)):
            if len(block):
                self.values[block] = self.compute(block)
                self.known[block] = 1
        return self.values[rows].astype(np.float32)


def see(photos: "Photos", vision: "VisionEncoder", kind: str, rows: np.ndarray, device: torch.device) -> Tensor:
    """The CLIP tokens [k, t, c] of what a branch looks at in the photos; `kind`: base or identity."""
    pictures = photos.base_pictures(rows) if kind == "base" else photos.identity_pictures(rows)
    vision.tower.to(device)
    return vision.encode_pictures(pictures).float()


def token_cache(
    photos: "Photos", vision: "VisionEncoder", kind: str, folder: Path, device: Callable[[], torch.device]
) -> RowCache:
    """`see` of all photos, kept in `folder`; `device()`: where it is computed at that moment."""
    shape = tuple(see(photos, vision, "identity", np.arange(1), torch.device("cpu")).shape[1:])
    return RowCache(
        folder / f"{kind}_{fingerprint(vision.tower)}",
        len(photos),
        shape,
        lambda rows: see(photos, vision, kind, rows, device()).cpu().numpy(),
    )


@torch.no_grad()
def encode_pictures(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1 -> latents [n, 4, h / 8, w / 8] at the diffusion model's scale, by either VAE."""
    encoded = vae.encode(pictures.to(vae.dtype))
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()
    return latents.float() * vae.config.scaling_factor


def memory_mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """The array at `path`, writable; zeros where there is none yet."""
    if not path.exists():
        with first_written(path) as aside:
            np.lib.format.open_memmap(aside, "w+", dtype, shape).flush()
    return np.load(path, mmap_mode="r+")
