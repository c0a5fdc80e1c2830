"""Whatever a photo comes as (file, PIL image, array, tensor) as uint8 [h, w, 3] RGB, or one clear sentence."""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import HyperLoRAError

MAX_PIXELS = 100_000_000  # larger photos are scaled down: 300 MB of pixels add nothing to a 224 px face
MAX_SIDE = 4096  # what they are scaled down to
MIN_SIDE = 32  # less than that can't hold a face
BACKGROUND = (127, 127, 127)  # behind transparent parts: the grey on which HyperLoRA's ID pictures lie, "nothing here"

# what Pillow raises on files that begin like a picture and go on badly
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)

PhotoSource = str | Path | Image.Image | np.ndarray | torch.Tensor


def read_photo(source: PhotoSource, name: str | None = None) -> np.ndarray:
    """A photo as uint8 [h, w, 3] RGB, upright, no transparency.

    `source`: a path; a PIL image; an array (uint8, uint16, or floats in 0..1) or tensor of shape [h, w] or [h, w, c],
    c = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; a leading axis of length 1 is allowed (a ComfyUI IMAGE of one picture).
    Transparent parts become mid grey; of an animation the first frame is taken; more than 100 Mpx are scaled down.
    `name` is what errors call the photo ("Photo 2"); a path's own name otherwise. Raises HyperLoRAError.
    """
    if isinstance(source, str | Path):
        label = f"{name} ({source})" if name else str(source)
        return _from_file(Path(source), label)
    label = name or "The photo"
    if isinstance(source, Image.Image):
        return _from_image(source, label)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float().numpy() if source.is_floating_point() else source.numpy()
    if isinstance(source, np.ndarray):
        return _from_array(source, label)
    raise HyperLoRAError(
        f"{label} is a {type(source).__name__}: pass a path, a PIL image, a numpy array or a tensor [h, w, c]."
    )


def read_batch(batch: Sequence[PhotoSource], name: str) -> list[np.ndarray]:
    """The pictures of a batch (a ComfyUI IMAGE) as `read_photo` gives them; errors call them "`name` 1", "`name` 2"...

    Raises HyperLoRAError for an empty batch.
    """
    if len(batch) == 0:
        raise HyperLoRAError(f"There is no {name} 1: the batch is empty. Connect a picture.")
    return [read_photo(picture, f"{name} {number}") for number, picture in enumerate(batch, start=1)]


def _from_file(path: Path, label: str) -> np.ndarray:
    if path.is_dir():
        raise HyperLoRAError(f"{label} is a folder: choose a picture in it.")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 Mpx on; those are scaled down here. From 179 Mpx on it refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _from_image(image, label)
    except FileNotFoundError as error:
        raise HyperLoRAError(f"{label} doesn't exist: check the path.") from error
    except Image.DecompressionBombError as error:
        raise HyperLoRAError(
            f"{label} has more than {2 * Image.MAX_IMAGE_PIXELS // 1_000_000} million pixels: "
            f"scale it down to {MAX_SIDE} pixels on the longer side."
        ) from error
    except UnidentifiedImageError as error:
        raise HyperLoRAError(
            f"{label} isn't a picture that can be read here (a web page or text under a picture's name, an empty file, "
            "or a format such as HEIC): save it as PNG or JPEG."
        ) from error
    except OSError as error:
        if error.errno is None:  # Pillow's own, from a broken header
            raise _damaged(label, error) from error
        raise HyperLoRAError(
            f"{label} can't be read ({error.strerror}): copy it to a folder that you may read."
        ) from error


def _from_image(image: Image.Image, label: str) -> np.ndarray:
    _check_size(*image.size, label)
    huge = image.width * image.height > MAX_PIXELS
    if huge:
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # JPEG decodes straight to a fraction of the size; others ignore it
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            return _from_array(_wide_grey(image), label)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
        image = image.convert("RGB")
        return _shrunk(image) if huge else np.array(image)
    except HyperLoRAError:
        raise
    except _BROKEN as error:
        raise _damaged(label, error) from error


def _damaged(label: str, error: Exception) -> HyperLoRAError:
    return HyperLoRAError(f"{label} is damaged or cut off ({error}): copy or download it again.")


def _wide_grey(image: Image.Image) -> np.ndarray:
    """Grey with more than 8 bits as an array [h, w]: float for mode F, else uint16 (older Pillow says I)."""
    values = np.asarray(image)
    return values if image.mode == "F" else values.clip(0, 65535).astype(np.uint16)


def _from_array(values: np.ndarray, label: str) -> np.ndarray:
    shape = values.shape
    if values.ndim == 4 and shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[..., None]
    if values.size == 0:
        raise HyperLoRAError(f"{label} is empty (shape {list(shape)}): connect a picture.")
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        advice = (
            "pass its pictures one by one"
            if values.ndim == 4
            else "put the channels last"
            if values.ndim == 3 and values.shape[0] in (1, 3, 4)
            else "pass [height, width, channels] with 1 to 4 channels"
        )
        raise HyperLoRAError(f"{label} has the shape {list(shape)}: {advice}.")
    _check_size(values.shape[1], values.shape[0], label)
    pixels = _to_bytes(values, label)
    channels = pixels.shape[2]
    if channels in (2, 4):
        # float arithmetic, because alpha is a ratio: colour * a + grey * (1 - a)
        alpha = pixels[..., -1:].astype(np.float32) / 255
        background = np.float32(BACKGROUND[: channels - 1])
        pixels = (pixels[..., :-1] * alpha + background * (1 - alpha)).round().astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        return _shrunk(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.array(pixels)


def _to_bytes(values: np.ndarray, label: str) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values.astype(np.float32) / 257).round().astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise HyperLoRAError(f"{label} has values of type {values.dtype}: pass uint8, uint16, or floats in 0..1.")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise HyperLoRAError(
            f"{label} has values that aren't numbers (NaN or infinite): the step that made it failed; "
            "make it again, for example with a VAE in fp32."
        )
    # samplers and upscalers overshoot 0..1 a little; values far outside mean another scale, such as 0..255 or -1..1
    if low < -0.5 or high > 2:
        raise HyperLoRAError(f"{label} has values from {low:.3g} to {high:.3g}: floats must lie in 0..1; rescale them.")
    return (values.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8)


def _check_size(width: int, height: int, label: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise HyperLoRAError(
            f"{label} is {width} x {height} pixels, too small to hold a face: use a larger photo "
            f"(at least {MIN_SIDE} pixels on each side)."
        )


def _shrunk(image: Image.Image) -> np.ndarray:
    scale = MAX_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.array(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))
