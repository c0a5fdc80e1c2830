"""A face's surroundings, cut out of a picture: to paint it again with more pixels, and put it back."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from ..errors import HyperLoRAError
from .analyzer import Face

FACTOR = 2.0  # side of the square, in lengths of the face's longer side
SOFTNESS = 0.03  # standard deviation of the mask's edge, in sides of the square


class Square(NamedTuple):
    """Left and upper edge and side, in pixels; inside the picture."""

    x: int
    y: int
    side: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """[h, w, ...] -> [side, side, ...]"""
        return picture[self.y : self.y + self.side, self.x : self.x + self.side]


def around(faces: Sequence[Face], size: tuple[int, int], factor: float = FACTOR) -> Square:
    """The square around all of these faces, in a picture of `size` [h, w]; without faces the largest in its middle.

    Raises HyperLoRAError for faces further apart than a square in the picture is wide.
    """
    height, width = size
    if not faces:
        side = min(height, width)
        return Square((width - side) // 2, (height - side) // 2, side)
    boxes = np.stack([face.box for face in faces])  # [n, 4]
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    if len(faces) > 1 and max(right - left, bottom - top) > min(height, width):
        raise HyperLoRAError(
            f"The {len(faces)} faces lie too far apart for a close-up in this picture of {width} x {height}: choose one of "
            "them by index, and the others after it."
        )
    side = min(round(factor * max(right - left, bottom - top)), height, width)
    return Square(
        int(np.clip(round((left + right - side) / 2), 0, width - side)),
        int(np.clip(round((top + bottom - side) / 2), 0, height - side)),
        side,
    )


def soften(mask: np.ndarray) -> np.ndarray:
    """A square's mask, uint8 [side, side]: what was white stays white, and fades out around it."""
    blurred = Image.fromarray(mask).filter(ImageFilter.GaussianBlur(SOFTNESS * len(mask)))
    return np.maximum(mask, np.minimum(np.asarray(blurred, np.uint16) * 2, 255)).astype(np.uint8)
