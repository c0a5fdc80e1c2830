"""The drawn portraits as photos to learn from, and the one door to either kind of training pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..face.pack import RECOGNITION, find_networks
from ..locate import DEMO_FACES, demo_folder
from .data import SIZE, Data
from .demo_faces import load_embeddings

if TYPE_CHECKING:
    from .photos import Photos


class DrawnPhotos:
    """A folder of demo-data and demo-faces as `photos.Photos`; portraits in which no face was found are left out."""

    size = SIZE

    def __init__(self, folder: str | Path):
        data, embeddings = Data(folder), load_embeddings(folder)
        self._data, self._embeddings = data, embeddings
        self._rows = np.flatnonzero(np.isfinite(embeddings[:, 0]))
        self.people = np.asarray(data.people[self._rows])
        self.recognition = find_networks(demo_folder() / DEMO_FACES)[RECOGNITION].stem

    def __len__(self) -> int:
        return len(self._rows)

    def captions(self, rows: np.ndarray) -> list[str]:
        return [self._data.caption(row) for row in self._rows[rows]]

    def pictures(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The whole portraits and their faces' boxes: there is nothing around them to crop."""
        return self._data.images[self._rows[rows]], self._data.boxes[self._rows[rows]]

    def identity_pictures(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        return self._data.faces[self._rows[rows]]

    def base_pictures(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        return self._data.surroundings[self._rows[rows]]

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        return self._embeddings[self._rows[rows]]


def open_photos(folder: str | Path) -> "Photos":
    """The training pictures in a folder of demo-data, or of `hyperlora prepare`."""
    if (Path(folder) / "images.npy").exists():
        return DrawnPhotos(folder)
    from .photos import PreparedPhotos

    return PreparedPhotos(folder)
