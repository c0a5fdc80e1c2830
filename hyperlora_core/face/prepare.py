"""The pictures that HyperLoRA's encoders look at, cut from a photo around the 106 landmarks of a face.

They follow the authors' published preprocessing to the pixel, because the network was trained on such pictures: all
resizing is Pillow's bicubic, and a masked patch is cut at rounded coordinates but pasted back at truncated ones, which
moves it by up to one pixel.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..errors import HyperLoRAError

GREY = (127, 127, 127)  # what stands where the background was
PATCH = 512  # side at which patches and masks are blurred
MASK_BLUR = 15  # Gaussian radius at PATCH
FACE_BLUR = 45
PATCH_HALF = 0.8  # half-side of the patch, in sides of the outline's box
BASE_GROWTH = 1.4  # the base picture hides this much more than the outline
RECOGNITION_GROWTH = 2.0

# the face's outline among InsightFace's 106 points: along the jaw from ear to ear, and back over the brows
OUTLINE = [
    1, *range(9, 17), *range(2, 9), 0, *range(24, 17, -1), *range(32, 24, -1), 17,
    101, 105, 104, 103, 102, 50, 51, 49, 48, 43,
]  # fmt: skip


class Square(NamedTuple):
    """A square in pixels of the photo: its centre and half its side."""

    x: float
    y: float
    half: float

    def box(self, left: float = 1, right: float = 1, top: float = 1, bottom: float = 1) -> tuple[float, ...]:
        """(x0, y0, x1, y1), each side moved to its own multiple of `half` from the centre."""
        return (
            self.x - left * self.half, self.y - top * self.half, self.x + right * self.half, self.y + bottom * self.half
        )  # fmt: skip


def face_square(landmarks: np.ndarray) -> Square:
    """The square around the landmarks [106, 2] (x, y): half-side 0.75 of their longer extent, raised by 1/8 half."""
    low, high = landmarks.min(0).astype(np.float64), landmarks.max(0).astype(np.float64)
    half = 0.75 * float((high - low).max())
    x, y = (low + high) / 2
    return Square(float(x), float(y) - 0.125 * half, half)


def face_box(landmarks: np.ndarray) -> tuple[float, ...]:
    """(x0, y0, x1, y1) of `face_square`; it may reach beyond the photo."""
    return face_square(landmarks).box()


def face_outline(landmarks: np.ndarray) -> np.ndarray:
    """The 43 landmarks around the face, in drawing order: [43, 2]."""
    return landmarks[OUTLINE].astype(np.float64)


def identity_picture(
    image: np.ndarray, landmarks: np.ndarray, remove_background: bool = True, grayscale: bool = False
) -> np.ndarray:
    """The picture for the ID branch's CLIP tower: the face's square, everything outside the face in mid grey.

    image uint8 [h, w, 3], landmarks [106, 2] in its pixels -> uint8 [s, s, 3]. Beyond the photo's edge it is black.
    Raises HyperLoRAError when image or landmarks don't fit.
    """
    _check(image, landmarks)
    wanted = face_square(landmarks).box()
    photo, landmarks, wanted = _window(image, landmarks, wanted)
    if remove_background:
        outline = face_outline(landmarks)
        canvas = Image.new("RGB", photo.size, GREY)
        patch, mask, corner = _masked_patch(photo, outline, outline)
        canvas.paste(patch, corner, mask)
        photo = canvas
    if grayscale:
        photo = photo.convert("L").convert("RGB")
    return np.array(photo.crop(wanted))


def base_picture(
    image: np.ndarray,
    landmarks: np.ndarray,
    crop_scale: tuple[float, float, float, float] = (1, 1, 1, 1),
    clip_to_photo: bool = True,
) -> np.ndarray:
    """The picture for the Base branch: the face's surroundings, the face itself blurred beyond recognition.

    image uint8 [h, w, 3], landmarks [106, 2] -> uint8 [h', w', 3]. `crop_scale`: left, right, top, bottom, each a
    factor on that side's distance from the face's centre. `clip_to_photo` cuts the crop at the photo's edges; otherwise
    it is black beyond them. Raises HyperLoRAError when image or landmarks don't fit, or nothing is left to crop.
    """
    _check(image, landmarks)
    left, right, top, bottom = crop_scale
    wanted = face_square(landmarks).box(left, right, top, bottom)
    if clip_to_photo:
        height, width = image.shape[:2]
        wanted = (max(wanted[0], 0), max(wanted[1], 0), min(wanted[2], width), min(wanted[3], height))
    if round(wanted[2]) <= round(wanted[0]) or round(wanted[3]) <= round(wanted[1]):
        raise HyperLoRAError(
            f"The base picture's crop ({left}, {right}, {top}, {bottom}) leaves nothing of the photo: "
            "use factors around 1, and a face that lies in the photo."
        )
    photo, landmarks, wanted = _window(image, landmarks, wanted)
    outline = face_outline(landmarks)
    middle = outline.mean(0)
    # the mask grows, but the patch keeps the size that the outline gives
    patch, mask, corner = _masked_patch(photo, outline, (outline - middle) * BASE_GROWTH + middle)
    photo.paste(_blurred(patch, FACE_BLUR), corner, mask)
    return np.array(photo.crop(wanted))


def recognition_picture(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The face with room around it (twice its square), to show or to search again: uint8 [s, s, 3].

    The embedding doesn't need it: `FaceAnalyzer` reads it from the whole photo.
    """
    _check(image, landmarks)
    growth = RECOGNITION_GROWTH
    photo, _, wanted = _window(image, landmarks, face_square(landmarks).box(growth, growth, growth, growth))
    return np.array(photo.crop(wanted))


def _masked_patch(
    photo: Image.Image, outline: np.ndarray, masked: np.ndarray
) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """The square patch of `photo` around `outline`, the soft mask of polygon `masked` in it, and where it is pasted."""
    half = PATCH_HALF * float((outline.max(0) - outline.min(0)).max())
    middle = outline.mean(0)
    box = (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half)
    mask = Image.new("L", photo.size, 0)
    # a list of tuples: Pillow misreads a float64 array and draws nothing
    ImageDraw.Draw(mask).polygon([tuple(point) for point in masked.tolist()], fill=255)
    return photo.crop(box), _blurred(mask.crop(box), MASK_BLUR), (int(box[0]), int(box[1]))


def _blurred(picture: Image.Image, radius: float) -> Image.Image:
    """Blur at a common size, so that the softness is a share of the face, whatever the photo's resolution."""
    resized = picture.resize((PATCH, PATCH), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(radius))
    return resized.resize(picture.size, Image.Resampling.BICUBIC)


def _window(
    image: np.ndarray, landmarks: np.ndarray, wanted: tuple[float, ...]
) -> tuple[Image.Image, np.ndarray, tuple[float, ...]]:
    """The part of the photo that matters, and landmarks and box in its pixels, so that large photos cost no more."""
    height, width = image.shape[:2]
    outline = face_outline(landmarks)
    # the patch (half-side 0.8 of the outline) and the grown mask lie within one outline size of the outline's box
    margin = float((outline.max(0) - outline.min(0)).max())
    low = np.floor(np.minimum(outline.min(0) - margin, wanted[:2])) - 1
    high = np.ceil(np.maximum(outline.max(0) + margin, wanted[2:])) + 1
    (x0, y0), (x1, y1) = low.clip(0, (width - 1, height - 1)).astype(int), high.clip(1, (width, height)).astype(int)
    photo = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    moved = (wanted[0] - x0, wanted[1] - y0, wanted[2] - x0, wanted[3] - y0)
    return photo, landmarks.astype(np.float64) - (x0, y0), moved


def _check(image: np.ndarray, landmarks: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise HyperLoRAError(
            f"A face is cut from a uint8 [h, w, 3] picture, not {image.dtype} {list(image.shape)}: "
            "read it with read_photo."
        )
    if landmarks.shape != (106, 2) or not np.isfinite(landmarks).all():
        raise HyperLoRAError(
            f"A face needs 106 landmarks with finite x and y, not an array {list(landmarks.shape)}: "
            "take them from FaceAnalyzer (InsightFace's 2d106 network)."
        )
    square = face_square(landmarks)
    x0, y0, x1, y1 = square.box()
    height, width = image.shape[:2]
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height or not 1 <= square.half <= 4 * max(width, height):
        raise HyperLoRAError(
            f"The landmarks (x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}) don't lie on this photo of "
            f"{width} x {height}: find the face again in this very picture."
        )
