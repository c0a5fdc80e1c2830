"""Pictures as files: those painted here, so that a stopped evaluation goes on where it was, and those made elsewhere."""

import csv
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import HyperLoRAError
from ..files import PICTURES, written_aside

SETTINGS = "settings.json"
INDEX = "index.csv"  # of a queue (queue.journal)


class PictureStore:
    """A method's folder: `<person>_<tag>.png`, and settings.json with all that decides over the pictures."""

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

    def path(self, person: str, tag: str) -> Path:
        """Where a picture lies or will lie; no `person`: it is the same for everybody."""
        return self.folder / (f"{person}_{tag}.png" if person else f"{tag}.png")

    def save(self, person: str, tag: str, pixels: np.ndarray, about: Mapping[str, str]) -> None:
        """Write uint8 [h, w, 3], with texts about it in the file."""
        info = PngInfo()
        for key, text in about.items():
            info.add_text(key, text)
        with written_aside(self.path(person, tag)) as aside:
            Image.fromarray(pixels).save(aside, format="PNG", pnginfo=info)


class PictureFolder:
    """Pictures made elsewhere, named as `hyperlora queue` does: `<person>_p<prompt>_s<seed>`, with any picture's ending.

    Without a person a picture is everybody's; a person may also be a folder. `_v2` is a newer version of a picture, `_1`,
    `_2`, ... behind all that are several pictures of one job.
    """

    NAME = re.compile(
        r"(?:(?P<person>.+)_)?p(?P<prompt>\d+)_s(?P<seed>\d+)(?:_v(?P<version>\d+))?(?:_(?P<number>\d+))?"
    )

    def __init__(self, folder: str | Path, number: int | None = None):
        """`number`: which of several pictures of a job. Raises HyperLoRAError when there is no picture of such a name, or
        there are several of a job and no number.
        """
        self.folder = Path(folder)
        self._check_index()
        newest: dict[tuple[str, int, int], tuple[int, Path]] = {}
        self._number = number
        for path in sorted(self.folder.rglob("*")):
            match = self.NAME.fullmatch("_".join(path.relative_to(self.folder).with_suffix("").parts))
            if match is None or path.suffix[1:].lower() not in PICTURES:
                continue
            if match["number"] and number is None:
                raise HyperLoRAError(
                    f"{path} is one of several pictures of a job: say which of them is this method's, as NAME={folder}#1."
                )
            if match["number"] and int(match["number"]) != number:
                continue
            key, version = (match["person"] or "", int(match["prompt"]), int(match["seed"])), int(match["version"] or 1)
            if key not in newest or version > newest[key][0]:
                newest[key] = version, path
        if not newest:
            raise HyperLoRAError(
                f"{folder} holds no picture that is called PERSON_p01_s1.png (person, prompt number, seed): name the "
                "pictures so, as hyperlora queue does."
            )
        self._paths = {key: path for key, (_, path) in newest.items()}

    def _check_index(self) -> None:
        """A queue's index.csv knows the number that each picture's prompt has now; the name keeps the one that it had at first."""
        try:
            with (self.folder / INDEX).open(encoding="utf-8", newline="") as file:
                rows = [(row.get("file") or "", row.get("prompt number") or "") for row in csv.DictReader(file)]
        except OSError:
            return  # no queue's
        for name, number in rows:
            match = self.NAME.fullmatch(Path(name).stem)
            if match and number.isdecimal() and int(number) != int(match["prompt"]):
                raise HyperLoRAError(
                    f"{self.folder / name} is called after prompt {int(match['prompt'])}, which is prompt {number} by now: the "
                    "list of prompts was changed between two runs of the queue. Give a folder that was filled with one list."
                )

    @property
    def seeds(self) -> set[int]:
        """Those in the names."""
        return {seed for _, _, seed in self._paths}

    def path(self, person: str, tag: str) -> Path:
        """Where a picture lies, or would."""
        match = self.NAME.fullmatch(tag)
        keys = [(who, int(match["prompt"]), int(match["seed"])) for who in (person, "")]
        return next((self._paths[key] for key in keys if key in self._paths), self.folder / f"{person}_{tag}.png")


def read_picture(path: Path) -> np.ndarray:
    """uint8 [h, w, 3]. Raises HyperLoRAError."""
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except OSError as error:
        raise HyperLoRAError(f"{path} can't be read ({error}): delete it, and make it again.") from error


def read_about(path: Path) -> dict[str, str]:
    """The texts that a picture painted here carries."""
    try:
        with Image.open(path) as file:
            return {str(key): str(text) for key, text in file.info.items()}
    except OSError as error:
        raise HyperLoRAError(f"{path} can't be read ({error}): delete it, and make it again.") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
