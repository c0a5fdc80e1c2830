"""Photographed people, prompts from a file, and pictures that other methods made of them: the paper's protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..batch.people import file_names, list_people
from ..errors import HyperLoRAError
from .people import Person
from .protocol import PROMPTS, SCENES, Method
from .store import PictureFolder

KIND = "# class:"


def read_kinds(path: str | Path = PROMPTS) -> dict[str, str]:
    """Prompt -> its class, for those that stand below a line "# class: NAME"."""
    kind, kinds = "", {}
    for line in map(str.strip, Path(path).read_text(encoding="utf-8-sig").splitlines()):
        if line.startswith(KIND):
            kind = line[len(KIND) :].strip()
        elif line and not line.startswith("#") and kind:
            kinds[line] = kind
    return kinds


def photographed_people(
    folder: str | Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    photos: int = 1,
    bare: Mapping[str, tuple[str, ...]] | None = None,
) -> list[Person]:
    """Everybody in a folder of photos, as `hyperlora queue` takes them and names their files: a folder is a person, and so
    is each photo that lies there directly.

    The first `photos` by name are the references; of those that are left, the last is the gallery photo. Each person gets
    every prompt with every seed. `bare`: further sets of prompts. Raises HyperLoRAError when somebody has fewer photos.
    """
    found = list_people(folder)
    names = file_names(found, {})
    shots = [(number, prompt, seed) for number, prompt in enumerate(prompts, start=1) for seed in seeds]
    people = []
    for person in found:
        if len(person.photos) < photos:
            raise HyperLoRAError(
                f"{person.name} in {folder} has {len(person.photos)} photos, but {photos} are needed: add photos, or leave "
                "the methods that take so many out."
            )
        more = person.photos[photos:]
        people.append(
            Person(
                name=names[person.name],
                photos=person.photos[:photos],
                looks={},
                gallery=more[-1] if more else None,
                prompts={SCENES: tuple(prompt for _, prompt, _ in shots)}
                | {name: of[: len(shots)] for name, of in (bare or {}).items()},
                renders=(),
                noise=tuple(seed for _, _, seed in shots),
                tags=tuple(f"p{number:02}_s{seed}" for number, _, seed in shots),
                digest=person.digest,
            )
        )
    return people


def given_methods(texts: Sequence[str]) -> list[Method]:
    """Rows of pictures made elsewhere, from NAME=FOLDER or NAME=FOLDER#N. Raises HyperLoRAError for what isn't that."""
    methods = {}
    for text in texts:
        name, _, place = text.partition("=")
        folder, _, number = place.rpartition("#") if place.rpartition("#")[2].isdecimal() else (place, "", "")
        if not (name and folder):
            raise HyperLoRAError(f"--pictures {text} isn't NAME=FOLDER, or NAME=FOLDER#N.")
        if name in methods:
            raise HyperLoRAError(f'Two rows would be called "{name}": give the pictures in {folder} another name.')
        methods[name] = Method(
            name, 0, 0.0, 0.0, False, SCENES, "", pictures=folder, number=int(number) if number else None
        )
    return list(methods.values())


def seeds_of(methods: Sequence[Method]) -> list[int]:
    """The seeds in the names of all pictures that are given."""
    return sorted({seed for method in methods for seed in PictureFolder(method.pictures, method.number).seeds})
