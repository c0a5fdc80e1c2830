"""Anti-aliased filled shapes: drawn by Pillow on a canvas several times as large, then reduced."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """The colour between `a` (t = 0) and `b` (t = 1)."""
    return tuple(round(p + (q - p) * t) for p, q in zip(a, b, strict=True))


def shade(colour: Colour, factor: float) -> Colour:
    """`colour` made darker (factor < 1) or lighter (factor > 1), kept in 0..255."""
    return tuple(min(255, round(p * factor)) for p in colour)


def palette(colours: list[Colour], t: float) -> Colour:
    """The colour at t in 0..1 along `colours`, laid out at equal distances."""
    at = t * (len(colours) - 1)
    i = min(int(at), len(colours) - 2)
    return mix(colours[i], colours[i + 1], at - i)


@lru_cache
def _circle(n: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(centre: tuple[float, float], rx: float, ry: float, n: int = 24) -> np.ndarray:
    """A closed outline [n, 2]."""
    return _circle(n) * (rx, ry) + centre


@lru_cache
def _spline(n: int, closed: bool, steps: int) -> np.ndarray:
    """Catmull-Rom weights [samples, n] for n knots."""
    segments = n if closed else n - 1
    rows = np.zeros((segments * steps + (not closed), n))
    for row, at in enumerate(np.arange(len(rows)) / steps):
        i = min(int(at), segments - 1)
        t = at - i
        weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
        for knot, weight in zip(range(i - 1, i + 3), weights, strict=True):
            rows[row, knot % n if closed else min(max(knot, 0), n - 1)] += weight / 2
    return rows


def smooth(knots: np.ndarray, closed: bool = False, steps: int = 5) -> np.ndarray:
    """A smooth curve [m, 2] through `knots` [n, 2]."""
    knots = np.asarray(knots, float)
    return _spline(len(knots), closed, steps) @ knots


class Painter:
    """A square RGB canvas; all coordinates and widths are in its pixels."""

    def __init__(self, size: int):
        self.size = size
        self.canvas = Image.new("RGB", (size, size))
        self.draw = ImageDraw.Draw(self.canvas)

    def fill(self, outline: np.ndarray, colour: Colour) -> None:
        """A filled closed outline [n, 2]."""
        self.draw.polygon(outline.ravel().tolist(), colour)

    def ribbon(self, curve: np.ndarray, width: float, colour: Colour, profile: tuple[float, ...] = (1.0,)) -> None:
        """A stroke along `curve` [n, 2]; `profile` scales the width along it, so that the ends can taper."""
        step = np.empty_like(curve)
        step[1:-1] = curve[2:] - curve[:-2]
        step[0], step[-1] = curve[1] - curve[0], curve[-1] - curve[-2]
        half = width / 2 / (np.hypot(step[:, 0], step[:, 1]) + 1e-9)
        if len(profile) > 1:
            half *= np.interp(
                np.arange(len(curve)) * ((len(profile) - 1) / (len(curve) - 1)), range(len(profile)), profile
            )
        offset = step[:, ::-1] * (1, -1) * half[:, None]
        self.fill(np.concatenate([curve + offset, (curve - offset)[::-1]]), colour)

    def veils(self, outline: np.ndarray, covers: list[tuple[np.ndarray, Colour]]) -> None:
        """Lay colours softly over the inside of `outline`: pairs of a coverage in 0..1 and its colour.

        A coverage [h, w] of any resolution spans the outline's bounding box.
        """
        low, high = np.floor(outline.min(0)).astype(int), np.ceil(outline.max(0)).astype(int)
        mask = Image.new("L", tuple((high - low).tolist()))
        ImageDraw.Draw(mask).polygon((outline - low).ravel().tolist(), 255)
        for alpha, colour in covers:
            cover = Image.fromarray((alpha.clip(0, 1) * 255).astype(np.uint8)).resize(mask.size, Image.BILINEAR)
            self.canvas.paste(colour, (*low.tolist(), *high.tolist()), ImageChops.multiply(cover, mask))

    def reduced(self, factor: int) -> Image.Image:
        """The finished picture, `factor` times smaller: the anti-aliasing."""
        return self.canvas.reduce(factor)
