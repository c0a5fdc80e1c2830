"""The people of a batch: each sub-folder of the photos' folder is one, and so is each photo that lies in it directly."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import HyperLoRAError
from ..files import PICTURES

NAME_BYTES = 150  # of a file name, so that endings and temporary names fit into the 255 that file systems allow
# Windows opens devices under these names, whatever the ending
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Person:
    """A person to be done."""

    name: str  # of the folder, or of the photo with its ending
    photos: tuple[str, ...]  # absolute paths
    digest: str  # changes when photos are added, taken away or changed
    problems: tuple[str, ...] = ()  # sentences about parts of the folder that can't be read
    file: str = ""  # name of what is written, without ending
    outdated: bool = False  # what lies there under this name is of other photos


def list_people(folder: str | Path, skip: Collection[Path] = ()) -> list[Person]:
    """The people in `folder`, by name, with all photos below their folders; hidden ones are left out.

    So are folders in `skip` (where results go) as long as no photo lies there.
    Raises HyperLoRAError when the folder can't be read or holds nobody.
    """
    root = Path(folder).absolute()
    skipped = {os.path.realpath(path) for path in skip}
    try:
        entries = sorted(entry for entry in os.listdir(root) if not entry.startswith("."))
    except OSError as error:
        raise HyperLoRAError(
            f"{folder} can't be read ({error.strerror}): name a folder that holds a folder of photos for each person."
        ) from error
    people = []
    for entry in entries:
        path = root / entry
        if path.is_dir():
            photos, problems = _photos_below(path)
            if photos or os.path.realpath(path) not in skipped:
                people.append(Person(entry, photos, _digest(photos, path), problems))
        elif _is_picture(entry):
            people.append(Person(entry, (str(path),), _digest([str(path)], root)))
    if not people:
        raise HyperLoRAError(
            f"{folder} holds no folders and no photos ({', '.join(PICTURES)}): put each person's photos into a folder there."
        )
    return people


def file_names(people: Iterable[Person], known: Mapping[str, str]) -> dict[str, str]:
    """Person's name -> name for their files, different for all, whatever the file system thinks of upper and lower case.

    `known` names of earlier runs stay, also those of people who are gone. Who would get another's name gets _2 behind it.
    """
    names = dict(known)
    taken = {name.casefold() for name in known.values()}
    wanted = {person.name: _file_name(person) for person in people if person.name not in known}
    # those whose name does for a file come first and keep it
    for person, stem in sorted(wanted.items(), key=lambda pair: (pair[0] != pair[1], pair[0])):
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.casefold())
        names[person] = name
    return names


def plain_name(person: Person) -> str:
    """What the person's files would be called if any name would do for a file."""
    from_photo = len(person.photos) == 1 and os.path.basename(person.photos[0]) == person.name
    return os.path.splitext(person.name)[0] if from_photo else person.name


def _file_name(person: Person) -> str:
    name = unicodedata.normalize("NFC", plain_name(person))
    name = "".join(letter if letter.isprintable() else "_" for letter in name)  # also bytes that are no text
    name = re.sub(r'[<>:"/\\|?*]', "_", name)
    name = name.encode()[:NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"{name}_" if name.partition(".")[0].lower() in DEVICES | {""} else name


def _photos_below(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of all photos in a folder and its folders, in order; sentences about folders that can't be read."""
    photos: list[str] = []
    closed: list[OSError] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
        real = os.path.realpath(place)
        if real in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        photos += (os.path.join(place, name) for name in files if not name.startswith(".") and _is_picture(name))
    problems = (f"{error.filename} can't be read ({error.strerror}): change its permissions." for error in closed)
    return tuple(sorted(photos)), tuple(problems)


def _is_picture(name: str) -> bool:
    return name.lower().rpartition(".")[2] in PICTURES


def _digest(photos: Iterable[str], folder: Path) -> str:
    """16 hex digits of the photos' names, sizes and times."""
    digest = hashlib.sha256()
    for photo in photos:
        try:
            status = os.stat(photo)
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:  # a link to nothing, say: found out when the photo is read
            stamp = str(error.errno)
        digest.update(os.fsencode(f"{os.path.relpath(photo, folder)}\0{stamp}\0"))
    return digest.hexdigest()[:16]
