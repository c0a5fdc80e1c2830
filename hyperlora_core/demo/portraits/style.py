"""Other ways to draw: what a second base model of the demo is fine-tuned to."""

import numpy as np

PAPER = np.array([0.97, 0.95, 0.9], np.float32)
PALENESS, INK, DARKEST = 0.45, 1.6, 0.6
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def pencil(pictures: np.ndarray) -> np.ndarray:
    """Coloured pencil on paper: pale colours, dark outlines. uint8 [n, h, w, 3] of both."""
    colours = pictures.astype(np.float32) / 255
    down, right = np.gradient(colours @ LUMINANCE, axis=(1, 2))
    ink = np.clip(INK * np.hypot(down, right), 0, DARKEST)[..., None]
    drawn = ((1 - PALENESS) * colours + PALENESS * PAPER) * (1 - ink)
    return (drawn * 255).round().astype(np.uint8)


STYLES = {"pencil": pencil}
