"""Training data of the demo's face pack: faces cut out the way InsightFace cuts them, drawn once into a cache.

A cache folder holds, for n portraits of `people` x `scenes`:

    aligned.npy    uint8 [n, 112, 112, 3]   the five-point alignment that recognition gets
    cropped.npy    uint8 [n, 96, 96, 3]     the box, 1.5 times enlarged, that the landmark network gets (at half size)
    points.npy     float32 [n, 212]         the 106 landmarks in the crop, -1..1
    portrait.npy   uint8 [n, 128, 128, 3]   the whole picture
    truth.npy      float32 [n, 14]          box (4) and key points (10) in the portrait
    person.npy     int64 [n]                the identity's seed
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import folder_aside
from .portraits import Identity, Portrait, Scene, render, training_identity

# where the five points go in a 112 x 112 crop: ArcFace's alignment (arXiv 1801.07698), as InsightFace applies it
ARCFACE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
SHAPES = {
    "aligned": ((112, 112, 3), np.uint8),
    "cropped": ((96, 96, 3), np.uint8),
    "points": ((212,), np.float32),
    "portrait": ((128, 128, 3), np.uint8),
    "truth": ((14,), np.float32),
    "person": ((), np.int64),
}
SIZES = (96, 128, 128, 192)  # sides at which faces are drawn, so that no network learns one sharpness


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares similarity [2, 3] that carries `source` [n, 2] to `target` [n, 2]."""
    a, b = source - source.mean(0), target - target.mean(0)
    scale = (a * a).sum()
    cos, sin = (a * b).sum() / scale, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / scale
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.concatenate([turn, (target.mean(0) - turn @ source.mean(0))[:, None]], 1)


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> Image.Image:
    """`image` under an affine map [2, 3], black outside: a `size` x `size` picture."""
    inverse = np.linalg.inv(np.concatenate([matrix, [[0, 0, 1]]]))[:2]
    inverse[:, 2] += 0.5 * (inverse[:, :2].sum(1) - 1)  # Pillow puts pixel centres at .5, InsightFace at 0
    return Image.fromarray(image).transform((size, size), Image.AFFINE, inverse.ravel(), Image.BILINEAR)


def aligned(portrait: Portrait, rng: np.random.Generator, error: float = 0.025) -> np.ndarray:
    """The face as recognition gets it, uint8 [112, 112, 3]; key points are off by `error` eye distances."""
    distance = np.linalg.norm(portrait.keypoints[1] - portrait.keypoints[0])
    points = portrait.keypoints + rng.normal(0, error * distance, (5, 2))
    return np.asarray(warp(portrait.image, similarity(points, ARCFACE_POINTS), 112))


def cropped(portrait: Portrait, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The face as the landmark network gets it, uint8 [96, 96, 3], and its points there, [212] in -1..1."""
    left, top, right, bottom = portrait.box
    side = max(right - left, bottom - top)
    centre = np.array([left + right, top + bottom]) / 2 + rng.normal(0, 0.035, 2) * side
    scale = 192 / (side * 1.5 * np.exp(rng.normal(0, 0.06)))
    matrix = np.array([[scale, 0, 96 - centre[0] * scale], [0, scale, 96 - centre[1] * scale]])
    points = portrait.landmarks @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(warp(portrait.image, matrix, 192).reduce(2)), (points / 96 - 1).astype(np.float32).ravel()


def face_scene(rng: np.random.Generator) -> Scene:
    """A scene with more of what hides a face than portraits usually have."""
    return Scene.random(rng, sketch=0.1, hat=0.28, glasses=0.3)


def make_cache(
    folder: Path, people: range, scenes: int, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw `scenes` portraits of each of `people` into `folder`, unless it is there already; returns `folder`.

    `progress(done, total)` is told of every person; an exception that it raises stops the work, and nothing stays of it.
    Raises HyperLoRAError when `people` reaches into the held-out identities.
    """
    training_identity(people[0]), training_identity(people[-1])
    if folder.exists():
        return folder
    n = len(people) * scenes
    with folder_aside(folder) as aside:  # several networks, and processes, learn from one folder
        for name, (shape, dtype) in SHAPES.items():
            np.lib.format.open_memmap(aside / f"{name}.npy", "w+", dtype, (n, *shape))
        with ProcessPoolExecutor(workers) as pool:
            jobs = [pool.submit(_draw_person, aside, seed, i * scenes, scenes) for i, seed in enumerate(people)]
            try:
                for done, job in enumerate(as_completed(jobs), 1):
                    job.result()
                    if progress:
                        progress(done, len(people))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return folder


def _draw_person(folder: Path, seed: int, start: int, scenes: int) -> None:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in SHAPES}
    identity, rng = training_identity(seed), np.random.default_rng([seed, 1])
    for i in range(start, start + scenes):
        portrait = render(identity, face_scene(rng), int(rng.choice(SIZES)))
        arrays["aligned"][i] = aligned(portrait, rng)
        arrays["cropped"][i], arrays["points"][i] = cropped(portrait, rng)
        scale = 128 / len(portrait.image)
        arrays["portrait"][i] = np.asarray(Image.fromarray(portrait.image).resize((128, 128), Image.BICUBIC))
        arrays["truth"][i] = np.concatenate([portrait.box, portrait.keypoints.ravel()]) * scale
        arrays["person"][i] = seed


def load_cache(folder: Path) -> dict[str, np.ndarray]:
    """The cache's arrays, memory-mapped, by name."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SHAPES}


def traits(people: np.ndarray) -> np.ndarray:
    """Trait vectors float32 [n, t] of the identities named by seeds [n]."""
    return np.stack([Identity.from_seed(int(seed)).vector() for seed in people])
