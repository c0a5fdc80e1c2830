"""Found faces made visible: boxes with numbers, and masks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .analyzer import Face
from .prepare import face_outline

COLOUR = (255, 196, 0)
SUPERSAMPLING = 4  # Pillow draws polygons without anti-aliasing


def annotate(photo: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """uint8 [h, w, 3] -> the same with each face's box, outline and number (0 is the first)."""
    picture = Image.fromarray(photo)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 200))
    font = ImageFont.load_default(size=max(10, min(picture.size) / 24))
    for number, face in enumerate(faces):
        draw.rectangle([float(value) for value in face.box], outline=COLOUR, width=line)
        outline = [(float(x), float(y)) for x, y in face_outline(face.landmarks)]
        draw.line([*outline, outline[0]], fill=COLOUR, width=line)
        corner = (max(0.0, float(face.box[0])) + 2 * line, max(0.0, float(face.box[1])) + line)
        draw.text(corner, str(number), fill=COLOUR, font=font, stroke_width=line, stroke_fill=(0, 0, 0))
    return np.asarray(picture)


def face_mask(photo: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [h, w], 255 inside the faces' outlines."""
    height, width = photo.shape[:2]
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    for face in faces:
        outline = [(float(x) * SUPERSAMPLING, float(y) * SUPERSAMPLING) for x, y in face_outline(face.landmarks)]
        ImageDraw.Draw(mask).polygon(outline, fill=255)
    return np.asarray(mask.resize((width, height), Image.Resampling.BOX))
