"""The weights that the pack can use: where they come from, where they go, what they are for (models/catalog.json)."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import HyperLoRAError
from .weights_check import check_file

# what `hyperlora download` fetches when nothing is named
FIRST_PICTURE = "first-picture"
COMPARISON = "comparison"
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class CatalogFile:
    """One file, or one archive that becomes a folder.

    path     where it goes, relative to ComfyUI's models folder; for an archive: the folder it is unpacked into
    url      its address; None where it can only be fetched by hand, from the item's page
    size     bytes, None where only `about` (e.g. "2.97 GB") is known
    sha256   published checksum, None where unknown
    also     other places (glob patterns) where users keep the same file
    members  for an archive: the files that are needed from it, with their bytes (None: unknown)
    """

    path: str
    url: str | None
    size: int | None
    about: str | None
    sha256: str | None
    also: tuple[str, ...] = ()
    members: tuple[tuple[str, int | None], ...] = ()

    @property
    def approximate_size(self) -> int:
        """Bytes to expect; 0 where nothing is known."""
        if self.size is not None or self.about is None:
            return self.size or 0
        number, unit = self.about.split()
        return round(float(number) * UNITS[unit])

    def places(self, models_folders: Iterable[Path]) -> Iterator[Path]:
        """Every existing path where this file may lie, the catalogued place first."""
        folders = list(models_folders)
        yield from (folder / self.path for folder in folders if (folder / self.path).exists())
        for folder in folders:
            for pattern in self.also:
                yield from sorted(folder.glob(pattern))

    def check(self, place: Path) -> None:
        """Raise HyperLoRAError, in a sentence, unless what lies at `place` is whole."""
        if not self.members:
            check_file(place, self.size)
        for name, size in self.members:
            check_file(place / name, size)

    def find(self, models_folders: Iterable[Path]) -> Path | None:
        """The first place where this file lies whole; None where there is none.

        Raises HyperLoRAError when it is there but broken everywhere; the sentence is about the first place.
        """
        broken = None
        for place in self.places(models_folders):
            try:
                self.check(place)
            except HyperLoRAError as error:
                broken = broken or error
            else:
                return place
        if broken:
            raise broken
        return None

    def whole(self, places: Iterable[Path]) -> Path | None:
        """The first of these existing places where this file lies whole."""
        for place in places:
            with suppress(HyperLoRAError):
                self.check(place)
                return place
        return None


@dataclass(frozen=True)
class CatalogItem:
    """What is downloaded together under one name."""

    name: str
    title: str
    group: str  # first-picture, more, base or comparison
    purpose: str
    licence: str
    page: str
    files: tuple[CatalogFile, ...]

    def find(self, models_folders: Iterable[Path]) -> list[Path | None]:
        """Where each file lies whole; None where it has to be fetched.

        Files that belong into one folder are looked for in one, since parts of two copies don't load together. Where no folder
        holds all of them whole, those count that lie at their catalogued places in the first models folder.
        """
        folders = list(models_folders)
        together: dict[Path, list[CatalogFile]] = {}
        for file in self.files:
            together.setdefault(Path(file.path).parent, []).append(file)
        found: dict[CatalogFile, Path | None] = {}
        for parent, files in together.items():
            places = {file: list(file.places(folders)) for file in files}
            if len(files) == 1:
                copies = [{files[0]: files[0].whole(places[files[0]])}]
            else:
                there = [place.parent for its in places.values() for place in its]
                copies = [
                    {file: file.whole(place for place in its if place.parent == folder) for file, its in places.items()}
                    for folder in dict.fromkeys([*(folder / parent for folder in folders[:1]), *there])
                ]
            found |= next((copy for copy in copies if all(copy.values())), copies[0] if copies else {})
        return [found.get(file) for file in self.files]

    @property
    def approximate_size(self) -> int:
        """Bytes to expect of all files together; 0 where nothing is known."""
        return sum(file.approximate_size for file in self.files)

    @property
    def by_hand(self) -> bool:
        """Whether a file of it can only be fetched in a browser."""
        return any(file.url is None for file in self.files)


def shipped_models() -> Path:
    """The pack's own models folder: beside hyperlora_core in a checkout, inside it in an installed wheel."""
    package = Path(__file__).parent
    for folder in (package.parent / "models", package / "models"):
        if (folder / "catalog.json").is_file():
            return folder
    raise HyperLoRAError(
        f"models/catalog.json is missing beside {package}: the installation isn't whole. Install again."
    )


@cache
def load_catalog() -> dict[str, CatalogItem]:
    """All items by name, in the order of the file."""
    entries = json.loads((shipped_models() / "catalog.json").read_text(encoding="utf-8"))["items"]
    return {entry["name"]: CatalogItem(**{**entry, "files": tuple(map(_file, entry["files"]))}) for entry in entries}


def pick(names: Iterable[str]) -> list[CatalogItem]:
    """The named items, in the order given; those for the first picture when nothing is named.

    Raises HyperLoRAError for a name that isn't in the catalogue.
    """
    catalog = load_catalog()
    names = list(dict.fromkeys(names)) or [item.name for item in catalog.values() if item.group == FIRST_PICTURE]
    for name in names:
        if name not in catalog:
            raise HyperLoRAError(f"{name!r} isn't in the catalogue. Choose among: {', '.join(catalog)}.")
    return [catalog[name] for name in names]


def readable(size: int) -> str:
    """Bytes as people read them, e.g. "2.97 GB"; "?" for 0."""
    for unit, scale in reversed(UNITS.items()):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes" if size else "?"


def _file(entry: dict) -> CatalogFile:
    members = tuple(entry.get("members", {}).items())
    return CatalogFile(**{**entry, "also": tuple(entry.get("also", ())), "members": members})
