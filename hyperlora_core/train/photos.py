"""What HyperLoRA's trainer asks of its pictures, and the reader of those that `hyperlora prepare` wrote."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import HyperLoRAError
from .photo_shards import MEMBERS, read_config, read_index, shard_name

Rows = Sequence[int] | np.ndarray


class Photos(Protocol):
    """Photos of people, by row. Only `pictures` is random, and only through its `rng`."""

    people: np.ndarray  # int64 [n]: whom each row shows; rows of one person are other photos of each other
    size: int  # side of the training pictures in pixels
    recognition: str  # the network that made the embeddings

    def __len__(self) -> int:
        """The number of rows."""

    def captions(self, rows: Rows) -> list[str]:
        """What each picture shows, without trigger words."""

    def pictures(self, rows: Rows, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The training pictures uint8 [k, size, size, 3], and the face in each, float32 [k, 4], x0 y0 x1 y1 in its pixels.

        With `rng` a random crop that holds the whole face, else the largest that there is.
        """

    def identity_pictures(self, rows: Rows) -> list[np.ndarray]:
        """face.identity_picture of the photos: uint8 [h, w, 3] of any size."""

    def base_pictures(self, rows: Rows) -> list[np.ndarray]:
        """face.base_picture, the face blurred: uint8 [h, w, 3] of any size."""

    def embeddings(self, rows: Rows) -> np.ndarray:
        """The face pack's: float32 [k, 512], of length 1."""


class PreparedPhotos:
    """A folder that `hyperlora prepare` finished. Implements Photos; copies in other processes may read it too.

    Raises HyperLoRAError when folder or shards are missing, unfinished or cut off.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        config = read_config(self.folder)
        self.size: int = config["rules.size"]
        self.recognition: str = config["recognition"]
        self._index = read_index(self.folder)
        if not len(self._index):
            raise HyperLoRAError(f"{self.folder} holds no photos: prepare some into it.")
        self.people = self._index["person"].copy()
        self._check_shards()

    def __len__(self) -> int:
        return len(self._index)

    def captions(self, rows: Rows) -> list[str]:
        """See Photos."""
        return [self.details(row)["caption"] for row in rows]

    def pictures(self, rows: Rows, rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See Photos. Random crops vary in place and in scale, as far as the margin of the preparation allows."""
        pictures, boxes = zip(*(self._crop(row, rng) for row in rows), strict=True)
        return np.stack(pictures), np.stack(boxes)

    def identity_pictures(self, rows: Rows) -> list[np.ndarray]:
        """See Photos."""
        return [np.asarray(self._picture(row, "id.jpg")) for row in rows]

    def base_pictures(self, rows: Rows) -> list[np.ndarray]:
        """See Photos."""
        return [np.asarray(self._picture(row, "base.jpg")) for row in rows]

    def embeddings(self, rows: Rows) -> np.ndarray:
        """See Photos."""
        return np.stack([np.load(io.BytesIO(self._read(row, "npy"))) for row in rows])

    def details(self, row: int) -> dict:
        """All that is told of a photo: caption, source, person, box and landmarks in the stored square, pose..."""
        return json.loads(self._read(row, "json"))

    def _crop(self, row: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        stored = self._picture(row, "jpg")
        box = self._index[row]["box"]
        region = (0, 0, stored.width, stored.width) if rng is None else random_square(box, self.size, stored.width, rng)
        x, y, right, _ = region
        if right - x == self.size:
            picture = stored.crop(region)
        else:
            picture = stored.resize((self.size, self.size), Image.Resampling.LANCZOS, box=region)
        return np.asarray(picture), (box - np.float32([x, y, x, y])) * np.float32(self.size / (right - x))

    def _picture(self, row: int, member: str) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self._read(row, member))).convert("RGB")
        except OSError as error:
            raise self._damaged(row, str(error)) from error

    def _read(self, row: int, member: str) -> bytes:
        entry, i = self._index[row], MEMBERS.index(member)
        size = int(entry["sizes"][i])
        # opened anew each time: thousands of open shards would pass the system's limit, and processes don't share a place
        try:
            with open(self._shard(row), "rb") as file:
                file.seek(int(entry["offsets"][i]))
                data = file.read(size)
        except OSError as error:
            raise self._damaged(row, error.strerror or str(error)) from error
        if len(data) != size:
            raise self._damaged(row, "it ends too early")
        return data

    def _shard(self, row: int) -> Path:
        return self.folder / shard_name(int(self._index[row]["shard"]))

    def _damaged(self, row: int, why: str) -> HyperLoRAError:
        return HyperLoRAError(
            f"{self._shard(row)} can't be read at photo {row} ({why}): copy it again from where it was prepared, or "
            "prepare the photos into another folder."
        )

    def _check_shards(self) -> None:
        """A shard that is missing or cut off is found at the start of a training, not in its middle."""
        last = np.flatnonzero(np.diff(self._index["shard"], append=np.uint32(0xFFFFFFFF)))  # the last row of each shard
        for row in last:
            path, entry = self._shard(row), self._index[row]
            size = path.stat().st_size if path.exists() else 0
            if size < int(entry["offsets"][-1]) + int(entry["sizes"][-1]):
                raise self._damaged(int(row), f"{size} bytes" if size else "it isn't there")


def random_square(box: np.ndarray, least: int, most: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A square x0, y0, x1, y1 of a side in least..most inside a picture of side `most`, around the whole box [4]."""
    low, high = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    side = int(rng.integers(max(least, int((high - low).max())), most + 1))
    x, y = (int(rng.integers(max(0, b - side), min(most - side, a) + 1)) for a, b in zip(low, high, strict=True))
    return x, y, x + side, y + side
