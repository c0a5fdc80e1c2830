"""The training pictures: portraits of training identities, drawn once into memory-mapped arrays.

A data folder holds, for n = people x scenes portraits, person after person:

    images.npy        uint8 [n, 128, 128, 3]
    faces.npy         uint8 [n, 112, 112, 3]   what the ID branch's CLIP tower looks at (face.prepare.identity_picture)
    surroundings.npy  uint8 [n, 112, 112, 3]   what the Base branch looks at (face.prepare.base_picture)
    captions.npy      bytes [n]                Scene.caption(), ASCII
    people.npy        int64 [n]                the identity's seed
    landmarks.npy     float32 [n, 106, 2]      pixels of the picture
    boxes.npy         float32 [n, 4]           left, top, right, bottom of the face
    done.npy          uint8 [people]           1 where a person's portraits are finished
    config.json

The two crops are kept at half of CLIP's 224 px, which is more than the faces have: `clip_input` enlarges them.
"""

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..demo.portraits import Scene, render, training_identity
from ..errors import HyperLoRAError
from ..face.prepare import base_picture, identity_picture
from ..files import written_aside
from ..vision import CLIP_MEAN, CLIP_STD, clip_crop

SIZE, CROP, CLIP_SIZE = 128, 112, 224
CAPTION_BYTES = 160
SHAPES = {
    "images": ((SIZE, SIZE, 3), np.dtype(np.uint8)),
    "faces": ((CROP, CROP, 3), np.dtype(np.uint8)),
    "surroundings": ((CROP, CROP, 3), np.dtype(np.uint8)),
    "captions": ((), np.dtype(f"S{CAPTION_BYTES}")),
    "people": ((), np.dtype(np.int64)),
    "landmarks": ((106, 2), np.dtype(np.float32)),
    "boxes": ((4,), np.dtype(np.float32)),
}


@dataclass(frozen=True)
class DataConfig:
    """Which portraits are drawn."""

    seed: int
    first_person: int  # seed of the first identity; the others follow it
    people: int
    scenes: int  # portraits of each
    landmark_error: float  # deviation of the crops' landmarks, in sides of the face box: a network's, not the truth


def draw_data(
    folder: str | Path, config: DataConfig, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> None:
    """Draw what is not there yet of `config` into `folder`, in `workers` processes.

    `progress(people done, people)` may raise to stop; what is drawn stays. Raises HyperLoRAError for people who are
    held out, and for a folder that holds other data.
    """
    folder = Path(folder)
    for last in (config.first_person, config.first_person + config.people - 1):
        training_identity(last)
    done = _open_arrays(folder, config)
    todo = np.flatnonzero(done == 0).tolist()
    finished = config.people - len(todo)
    # few and large jobs: a process opens the arrays once for each
    jobs = [todo[i : i + 25] for i in range(0, len(todo), 25)]
    if progress is not None:
        progress(finished, config.people)
    with ProcessPoolExecutor(workers) as pool:
        futures = {pool.submit(_draw_people, folder, config, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                done[futures[future]] = 1
                finished += len(futures[future])
                if progress is not None:
                    progress(finished, config.people)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            done.flush()


def _open_arrays(folder: Path, config: DataConfig) -> np.memmap:
    """Create the arrays, or check those that are there; returns done.npy, writable."""
    path = folder / "config.json"
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != asdict(config):
            raise HyperLoRAError(f"{folder} holds portraits of another config. Draw into another folder (--out).")
        return np.load(folder / "done.npy", mmap_mode="r+")
    folder.mkdir(parents=True, exist_ok=True)
    n = config.people * config.scenes
    for name, (shape, dtype) in SHAPES.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (n, *shape))
    done = np.lib.format.open_memmap(folder / "done.npy", "w+", np.uint8, (config.people,))
    with written_aside(path) as aside:
        aside.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
    return done


def _draw_people(folder: Path, config: DataConfig, numbers: list[int]) -> None:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in SHAPES}
    for number in numbers:
        seed = config.first_person + number
        identity, rng = training_identity(seed), np.random.default_rng([config.seed, seed])
        for i in range(number * config.scenes, (number + 1) * config.scenes):
            portrait = render(identity, Scene.random(rng), SIZE)
            found = found_landmarks(portrait.landmarks, portrait.box, config.landmark_error, rng)
            row = {
                "images": portrait.image,
                "faces": clip_crop(identity_picture(portrait.image, found), CROP),
                "surroundings": clip_crop(base_picture(portrait.image, found), CROP),
                "captions": portrait.caption.encode("ascii"),
                "people": seed,
                "landmarks": portrait.landmarks,
                "boxes": portrait.box,
            }
            for name, value in row.items():
                arrays[name][i] = value
    for array in arrays.values():
        array.flush()


def found_landmarks(landmarks: np.ndarray, box: np.ndarray, error: float, rng: np.random.Generator) -> np.ndarray:
    """Landmarks [106, 2] as a network would find them: shifted and scaled as a whole, and each a little off."""
    side = float(max(box[2] - box[0], box[3] - box[1]))
    middle = landmarks.mean(0)
    moved = middle + (landmarks - middle) * (1 + rng.normal(0, error)) + rng.normal(0, error * side, 2)
    return moved + rng.normal(0, 0.3 * error * side, landmarks.shape)


class Data:
    """A finished data folder. Arrays are memory-mapped under the names above; `scenes` rows belong to each person."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            self.config = DataConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
            missing = int((np.load(folder / "done.npy") == 0).sum())
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in SHAPES}
        except (OSError, ValueError, TypeError) as error:
            raise HyperLoRAError(
                f"{folder} holds no training portraits ({error}). Run: hyperlora train demo-data --out {folder}"
            ) from error
        if missing:
            raise HyperLoRAError(
                f"{folder} lacks the portraits of {missing} people. Run again: hyperlora train demo-data --out {folder}"
            )
        self.folder, self.scenes = folder, self.config.scenes
        self.images, self.faces, self.surroundings = arrays["images"], arrays["faces"], arrays["surroundings"]
        self.people, self.landmarks, self.boxes = arrays["people"], arrays["landmarks"], arrays["boxes"]
        self._captions = arrays["captions"]

    def __len__(self) -> int:
        return len(self.people)

    def spread(self, n: int) -> np.ndarray:
        """Rows of at most `n` portraits from beginning to end, to show."""
        return np.unique(np.linspace(0, len(self) - 1, n).astype(int))

    def caption(self, row: int) -> str:
        """The scene's caption."""
        return self._captions[row].decode("ascii")


def pictures_to_model(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in -1..1, as the autoencoder takes it."""
    return torch.from_numpy(pictures).to(device).movedim(-1, 1).float().div_(127.5).sub_(1)


def pictures_from_model(pictures: Tensor) -> np.ndarray:
    """The inverse of `pictures_to_model`."""
    return pictures.add(1).mul(127.5).round().clamp(0, 255).byte().movedim(1, -1).cpu().numpy()


def clip_input(pictures: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, 224, 224] as `vision.clip_pixels` makes it, on the device."""
    pixels = torch.from_numpy(pictures).to(device).movedim(-1, 1).float().div_(255)
    pixels = functional.interpolate(pixels, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", antialias=True).clamp_(0, 1)
    mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / deviation
