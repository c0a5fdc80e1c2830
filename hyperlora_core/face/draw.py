"""Found faces made visible: boxes with numbers, and masks."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .analyzer import Face
from .prepare import face_outline

CHOSEN, OTHER = (255, 196, 0), (200, 200, 200)
SUPERSAMPLING = 4  # Pillow draws polygons without anti-aliasing


def annotate(photo: np.ndarray, boxes: Sequence[np.ndarray], chosen: Mapping[int, Face]) -> np.ndarray:
    """uint8 [h, w, 3] -> the same with the boxes ([4] x0 y0 x1 y1) of all its faces and their numbers, the first 0, and the
    outlines of those `chosen`, which are known by these numbers."""
    picture = Image.fromarray(photo)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(10, min(picture.size) / 24))
    for number, box in enumerate(boxes):
        colour = CHOSEN if number in chosen else OTHER
        draw.rectangle([float(value) for value in box], outline=colour, width=line)
        if number in chosen:
            outline = [(float(x), float(y)) for x, y in face_outline(chosen[number].landmarks)]
            draw.line([*outline, outline[0]], fill=colour, width=line)
        corner = (max(0.0, float(box[0])) + 2 * line, max(0.0, float(box[1])) + line)
        draw.text(corner, str(number), fill=colour, font=font, stroke_width=line, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def face_mask(photo: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [h, w], 255 inside the faces' outlines."""
    height, width = photo.shape[:2]
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    for face in faces:
        outline = [(float(x) * SUPERSAMPLING, float(y) * SUPERSAMPLING) for x, y in face_outline(face.landmarks)]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
    return np.asarray(mask.resize((width, height), Image.Resampling.BOX))
