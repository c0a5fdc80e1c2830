"""uint8 pictures as the tensors that ComfyUI passes along its IMAGE and MASK wires."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_batch(pictures: Sequence[np.ndarray], size: int | None = None) -> Tensor:
    """uint8 [h, w, 3] each -> float32 [n, h, w, 3] in 0..1; pictures of other sizes than the first are resized to it.

    `size`: fit each picture into a square of that many pixels first, on black.
    """
    if size is not None:
        pictures = [_fitted(picture, size) for picture in pictures]
    height, width = pictures[0].shape[:2]
    same = [
        p if p.shape[:2] == (height, width) else np.asarray(Image.fromarray(p).resize((width, height)))
        for p in pictures
    ]
    return torch.from_numpy(np.stack(same)).float() / 255


def mask_batch(masks: Sequence[np.ndarray]) -> Tensor:
    """uint8 [h, w] each, of one size -> float32 [n, h, w] in 0..1."""
    return torch.from_numpy(np.stack(masks)).float() / 255


def _fitted(picture: np.ndarray, size: int) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    inner = Image.fromarray(picture).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS
    )
    canvas = Image.new("RGB", (size, size))
    canvas.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return np.asarray(canvas)
