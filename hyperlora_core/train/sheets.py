"""Sheets of samples, to be looked at during training."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def sheet(kinds: Sequence[np.ndarray], columns: int = 8, gap: int = 2) -> Image.Image:
    """Several versions of the same n pictures, each uint8 [n, h, w, 3], below each other in rows of `columns`."""
    n, height, width = kinds[0].shape[:3]
    blocks = [kind[start : start + columns] for start in range(0, n, columns) for kind in kinds]
    canvas = np.full((len(blocks) * (height + gap) - gap, min(n, columns) * (width + gap) - gap, 3), 255, np.uint8)
    for y, row in enumerate(blocks):
        for x, picture in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas)
