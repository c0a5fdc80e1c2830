"""Painted pictures as files, so that a stopped evaluation goes on where it was."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import HyperLoRAError
from ..files import written_aside

SETTINGS = "settings.json"


class PictureStore:
    """A method's folder: `<person>_<picture>.png`, and settings.json with all that decides over the pictures."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False):
        """Open or create. Raises HyperLoRAError when the folder's pictures were painted with other settings; with
        `overwrite` these are deleted.
        """
        self.folder = folder
        path = folder / SETTINGS
        wanted = json.loads(json.dumps(settings))  # as it will be read again
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key in sorted({*before, *wanted}) if before.get(key) != wanted.get(key)]
            if other and not overwrite:
                raise HyperLoRAError(
                    f"{folder} holds pictures painted with other settings ({other[0]} was {_short(before.get(other[0]))}, "
                    f"is {_short(wanted.get(other[0]))}): choose another --out, or paint them again with --overwrite."
                )
            if other:
                shutil.rmtree(folder)
        if not path.exists():
            with written_aside(path) as aside:
                aside.write_text(json.dumps(wanted, indent=2), encoding="utf-8")

    def path(self, person: str, picture: int) -> Path:
        """Where a picture lies or will lie."""
        return self.folder / f"{person}_{picture}.png"

    def has(self, person: str, picture: int) -> bool:
        """Whether it was painted."""
        return self.path(person, picture).exists()

    def save(self, person: str, picture: int, pixels: np.ndarray, about: Mapping[str, str]) -> None:
        """Write uint8 [h, w, 3], with texts about it in the file."""
        info = PngInfo()
        for key, text in about.items():
            info.add_text(key, text)
        with written_aside(self.path(person, picture)) as aside:
            Image.fromarray(pixels).save(aside, format="PNG", pnginfo=info)

    def load(self, person: str, picture: int) -> np.ndarray:
        """Read uint8 [h, w, 3]."""
        path = self.path(person, picture)
        try:
            with Image.open(path) as file:
                return np.asarray(file.convert("RGB"))
        except OSError as error:
            raise HyperLoRAError(f"{path} can't be read ({error}): delete it, and it is painted again.") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
