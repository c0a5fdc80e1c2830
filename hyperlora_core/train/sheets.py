"""Sheets of samples, to be looked at during training."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def sheet(rows: Sequence[np.ndarray], zoom: int = 1, gap: int = 2) -> Image.Image:
    """Rows of pictures, uint8 [n, h, w, 3] each, as one picture, each pixel `zoom` pixels wide."""
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas.repeat(zoom, 0).repeat(zoom, 1))
