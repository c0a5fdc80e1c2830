"""Pictures for the detector: portraits of all sizes pasted into clutter, close-ups, and pictures without a face."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .face_networks import ANCHOR_SIZES, STRIDES

RESAMPLING = (Image.NEAREST, Image.BILINEAR, Image.BILINEAR, Image.BICUBIC)


class Crowd(NamedTuple):
    """A picture and the faces in it."""

    image: np.ndarray  # uint8 [side, side, 3]
    boxes: np.ndarray  # float32 [faces, 4]
    points: np.ndarray  # float32 [faces, 5, 2]


def clutter(rng: np.random.Generator, side: int) -> Image.Image:
    """A picture without a face: a flat colour, a gradient, noise of some scale, or shapes of any colour, skin's too."""
    kind = rng.integers(5)
    base = tuple(int(v) for v in rng.integers(0, 256, 3))
    if kind == 0:
        return Image.new("RGB", (side, side), base if rng.random() < 0.7 else (0, 0, 0))
    coarse = int(2 ** rng.uniform(1, 7.5))
    noise = rng.integers(0, 256, (2 if kind == 1 else coarse, 2 if kind == 1 else coarse, 3), np.uint8)
    if rng.random() < 0.3:
        noise[:] = noise[..., :1]
    picture = Image.fromarray(noise).resize((side, side), RESAMPLING[rng.integers(4)])
    if kind < 3:
        return picture
    draw = ImageDraw.Draw(picture)
    skin = np.array((150, 105, 80))
    for _ in range(rng.integers(3, 30)):
        x, y = rng.uniform(-0.1, 1, 2) * side
        w, h = side * 10 ** rng.uniform(-1.6, -0.2, 2)
        colour = tuple(
            int(v)
            for v in (skin * rng.uniform(0.5, 1.7) if rng.random() < 0.4 else rng.integers(0, 256, 3)).clip(0, 255)
        )
        shape = rng.integers(4)
        if shape == 0:
            draw.ellipse((x, y, x + w, y + w * rng.uniform(0.8, 1.5)), colour)
        elif shape == 1:
            draw.rectangle((x, y, x + w, y + h), colour)
        elif shape == 2:
            draw.line(rng.uniform(0, side, (rng.integers(2, 6), 2)).ravel().tolist(), colour, int(rng.integers(1, 12)))
        else:
            draw.polygon((rng.uniform(-0.5, 0.5, (rng.integers(3, 7), 2)) * w + (x, y)).ravel().tolist(), colour)
    return picture


def crowd(rng: np.random.Generator, portraits: np.ndarray, truths: np.ndarray, side: int) -> Crowd:
    """Compose a `side` x `side` picture from `portraits` uint8 [n, 128, 128, 3] with boxes and points `truths` [n, 14]."""
    canvas = clutter(rng, side)
    kind = rng.choice(["one", "close", "several", "none"], p=[0.3, 0.2, 0.42, 0.08])
    places: list[tuple[np.ndarray, float, np.ndarray]] = []  # the part of a portrait, its scale, where its corner goes
    picks = rng.integers(len(portraits), size=8)
    if kind == "one":  # a whole picture, padded at the right or below as InsightFace pads
        width, height = (side, side * rng.uniform(0.6, 1)) if rng.random() < 0.5 else (side * rng.uniform(0.6, 1), side)
        canvas.paste((0, 0, 0), (0, 0, side, side))
        portrait_side = min(width, height) * (rng.uniform(0.5, 1) if rng.random() < 0.3 else 1)
        canvas.paste(clutter(rng, side).crop((0, 0, int(width), int(height))))
        corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - portrait_side)
        places.append((np.array([0, 0, 128, 128.0]), portrait_side / 128, corner))
    elif kind == "close":  # the face alone, up to the picture's edge
        left, top, right, bottom = truths[picks[0], :4]
        face = max(right - left, bottom - top)
        margin = rng.uniform(0.02, 0.3) * face
        x, y = (left + right) / 2 - face / 2 - margin, (top + bottom) / 2 - face / 2 - margin
        part = (
            np.array([x, y, x + face + 2 * margin, y + face + 2 * margin])
            + np.repeat(rng.normal(0, margin / 3, 2)[None], 2, 0).ravel()
        )
        scale = side * rng.uniform(0.7, 1) / (face + 2 * margin)
        places.append((part, scale, rng.uniform(0, 1, 2) * (side - (face + 2 * margin) * scale)))
    elif kind == "several":
        taken: list[tuple[float, float, float]] = []
        for _ in range(rng.integers(1, 8)):
            size = side * 10 ** rng.uniform(-1.3, -0.2)
            x, y = rng.uniform(0, side - size, 2)
            if all(x + size <= a or a + s <= x or y + size <= b or b + s <= y for a, b, s in taken):
                taken.append((x, y, size))
                places.append((np.array([0, 0, 128, 128.0]), size / 128, np.array([x, y])))
    boxes, points = [], []
    for pick, (part, scale, corner) in zip(picks, places, strict=False):
        whole = tuple(int(v) for v in np.ceil((part[2:] - part[:2]) * scale))
        corner = corner.round()
        portrait = Image.fromarray(portraits[pick])
        truth = truths[pick].reshape(7, 2)
        erased = rng.random() < 0.06
        if erased:  # hair, hat and shoulders alone are no face
            ImageDraw.Draw(portrait).ellipse(truth[:2].ravel().tolist(), tuple(portraits[pick, 64, 64].tolist()))
        canvas.paste(
            portrait.resize(whole, RESAMPLING[rng.integers(4)], tuple(part))
            if _inside(part)
            else portrait.transform(whole, Image.EXTENT, tuple(part), Image.BILINEAR),
            tuple(corner.astype(int).tolist()),
        )
        if not erased:
            moved = (truth - part[:2]) * scale + corner
            boxes.append(moved[:2].ravel())
            points.append(moved[2:])
    return Crowd(
        np.asarray(canvas), np.array(boxes, np.float32).reshape(-1, 4), np.array(points, np.float32).reshape(-1, 5, 2)
    )


def _inside(part: np.ndarray) -> bool:
    return part.min() >= 0 and part.max() <= 128


def targets(boxes: np.ndarray, points: np.ndarray, side: int) -> list[np.ndarray]:
    """What the detector should say, per stride: float32 [side / stride, side / stride, 2, 15] in `Detector.raw`'s form.

    The score is 1 at faces, 0 elsewhere and -1 where it doesn't matter: near a face's middle, or nearly its size.
    """
    out = []
    for stride, sizes in zip(STRIDES, ANCHOR_SIZES, strict=True):
        at = np.arange(side // stride) * stride
        target = np.zeros((len(at), len(at), 2, 15), np.float32)
        for box, five in zip(boxes, points, strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            x, y = np.meshgrid(at, at)
            off = np.maximum(np.abs(x - (box[0] + box[2]) / 2) / width, np.abs(y - (box[1] + box[3]) / 2) / height)
            reach = max(0.17, 0.51 * stride / min(width, height))
            for anchor, size in enumerate(sizes):
                ratio = np.sqrt(width * height) / size
                fits = 1 / 1.6 < ratio < (2.4 if size == 512 else 1.6)
                if not fits and not 1 / 2.4 < ratio < 2.4:
                    continue
                seen = off < reach
                score = target[..., anchor, 0]
                score[(off < 2 * reach) & (score < 1)] = -1
                if fits:
                    score[seen] = 1
                    place = np.stack([x, y], -1)[seen]
                    sides = np.concatenate([place - box[:2], box[2:] - place], 1)
                    target[seen, anchor, 1:5] = sides / size
                    target[seen, anchor, 5:] = (five[None] - place[:, None]).reshape(-1, 10) / size
        out.append(target)
    return out
