"""Which of several faces is meant."""

from collections.abc import Sequence

import numpy as np

from ..errors import HyperLoRAError

CHOICES = ("largest", "centre", "left", "right")


def choose_face(
    boxes: Sequence[np.ndarray] | np.ndarray, which: str | int, photo_size: tuple[int, int], name: str = "the photo"
) -> int:
    """Position in `boxes` ([n, 4] x0 y0 x1 y1, n >= 1) of the face that `which` means.

    "largest" by area; "centre" nearest to the middle of the photo (`photo_size` = width, height); "left" and "right" as
    seen in the photo; a number counts the faces from left to right, from 0. Raises HyperLoRAError.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
    order = left_to_right(boxes)
    if which == "largest":
        return int(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).argmax())
    if which == "centre":
        return int(np.linalg.norm(centres - np.array(photo_size) / 2, axis=1).argmin())
    if which == "left":
        return int(order[0])
    if which == "right":
        return int(order[-1])
    try:
        index = int(which)
    except ValueError as error:
        raise HyperLoRAError(
            f'Which face: "{which}" is none of {", ".join(CHOICES)}, or a number counted from the left, starting at 0.'
        ) from error
    if not 0 <= index < len(boxes):
        faces = "1 face" if len(boxes) == 1 else f"{len(boxes)} faces"
        numbers = "only number 0 exists" if len(boxes) == 1 else f"use 0 to {len(boxes) - 1}, counted from the left"
        raise HyperLoRAError(f"Face {index} doesn't exist: {name} shows {faces}; {numbers}.")
    return int(order[index])


def left_to_right(boxes: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The order of `boxes` [n, 4] by their centres, from left to right: int [n]."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.argsort(boxes[:, 0] + boxes[:, 2], kind="stable")
