"""The photos to be prepared: single files, folders of them, and WebDataset shards (tar files).

Shards are read through the places of their members, so that any process can read any photo without unpacking.
"""

import glob
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import HyperLoRAError
from ..files import PICTURES

SHARDS = ("tar", "tar.gz", "tgz", "tar.zst")


class Span(NamedTuple):
    """A file, or a part of one."""

    path: str
    offset: int = 0
    size: int = -1  # bytes; -1: to the end

    def read(self) -> bytes:
        """Raises OSError."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Source(NamedTuple):
    """A photo that has not been looked at yet."""

    name: str  # the folder's or shard's name and the path in it; the same wherever the folder lies
    person: str
    weight: int  # bytes of the input that are done with it
    picture: Span | None
    text: Span | None = None  # a caption in a file of its own
    record: Span | None = None  # JSON that may hold a caption
    problem: str = ""  # why there is no picture

    def caption(self) -> str | None:
        """The caption beside the photo on one line; None where there is none. Raises OSError, or ValueError."""
        if self.text is not None:
            return " ".join(self.text.read().decode("utf-8-sig").split()) or None
        if self.record is not None:
            record = json.loads(self.record.read())
            caption = record.get("caption") if isinstance(record, dict) else None
            return " ".join(caption.split()) or None if isinstance(caption, str) else None
        return None


class Entry(NamedTuple):
    """A photo's file, or a shard."""

    name: str
    path: str
    size: int
    person: str | None  # None: every photo its own


def list_entries(photos: Sequence[str | Path], people_folders: bool = False, skip: Path | None = None) -> list[Entry]:
    """What `photos` (files, folders, patterns) hold, sorted by name; nothing below `skip`, nothing hidden.

    `people_folders`: each folder right below one that was named is a person. Raises HyperLoRAError when something isn't
    there, nothing is found, or two things would have one name.
    """
    entries: dict[str, Entry] = {}
    for asked in photos:
        for path in _expanded(str(asked)):
            for entry in _entries_in(Path(path).absolute(), people_folders, skip and skip.resolve()):
                known = entries.setdefault(entry.name, entry)
                if os.path.realpath(known.path) != os.path.realpath(entry.path):
                    raise HyperLoRAError(
                        f"{known.path} and {entry.path} would both be called {entry.name}: rename one's folder, or name "
                        "the folder above both."
                    )
    if not entries:
        raise HyperLoRAError(
            f"{', '.join(map(str, photos))} holds no photos ({', '.join(PICTURES)}) and no shards (tar): name a folder "
            "of photos, or WebDataset shards."
        )
    return [entries[name] for name in sorted(entries)]


def read_entries(entries: Iterable[Entry]) -> Iterator[Source]:
    """The photos of `entries`, shard after shard."""
    for entry in entries:
        if _ending(entry.path) in SHARDS:
            yield from _read_shard(entry)
        else:
            text = Path(entry.path).with_suffix(".txt")
            caption = Span(str(text)) if text.is_file() else None
            yield Source(entry.name, entry.person or entry.name, entry.size, Span(entry.path), caption)


def _expanded(asked: str) -> list[str]:
    if os.path.exists(asked):
        return [asked]
    found = sorted(glob.glob(asked, recursive=True))
    if not found:
        raise HyperLoRAError(f"{asked} doesn't exist: name a folder of photos, or WebDataset shards.")
    return found


def _entries_in(path: Path, people_folders: bool, skip: Path | None) -> Iterator[Entry]:
    if not path.is_dir():
        # named as it would be through its folder
        yield _entry(path, path.parent.resolve(), path.parent.name if people_folders else None)
        return
    root, seen, closed = path.resolve(), set(), []
    for folder, folders, files in os.walk(root, followlinks=True, onerror=closed.append):
        real = os.path.realpath(folder)
        # links may lead in a circle
        if real in seen or (skip is not None and Path(real).is_relative_to(skip)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        parts = Path(folder).relative_to(root).parts
        person = f"{root.name}/{parts[0]}" if people_folders and parts else None
        for name in files:
            if not name.startswith(".") and _ending(name) in (*PICTURES, *SHARDS):
                yield _entry(Path(folder, name), root, person)
    for error in closed:
        yield _entry(Path(error.filename), root, None)  # reported as a photo that can't be read


def _entry(path: Path, root: Path, person: str | None) -> Entry:
    name = _plain(f"{root.name}/{path.relative_to(root) if path.is_relative_to(root) else path.name}")
    size = path.stat().st_size if path.exists() else 0  # a link to nothing is found out when it is read
    if _ending(str(path)) in SHARDS:
        # people lie within the shard, and go on from one to the next
        return Entry(name, str(path), size, name.rpartition("/")[0] if person is not None else None)
    return Entry(name, str(path), size, person)


def _read_shard(entry: Entry) -> Iterator[Source]:
    """The samples of a tar: neighbouring files of one name up to its first dot."""
    done, key = 0, ""
    spans: dict[str, Span] = {}
    try:
        with tarfile.open(entry.path, "r:") as shard:
            for member in shard:
                if not member.isreg():
                    continue
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                stem, _, ending = name.partition(".")
                if spans and key != folder + slash + stem:
                    yield _sample(entry, key, spans, member.offset - done)
                    done, spans = member.offset, {}
                key = folder + slash + stem
                spans[ending.lower()] = Span(entry.path, member.offset_data, member.size)
        if spans:
            yield _sample(entry, key, spans, entry.size - done)
    except (tarfile.TarError, OSError, EOFError) as error:
        place = f" at {key}" if key else ""
        problem = f"not an uncompressed tar, or damaged{place} ({error}): unpack it with gunzip, or download it again"
        yield Source(entry.name, entry.name, entry.size - done, None, problem=problem)


def _sample(entry: Entry, key: str, spans: dict[str, Span], weight: int) -> Source:
    name = _plain(f"{entry.name}/{key}")
    folder = key.partition("/")[0] if "/" in key else None
    person = f"{entry.person}/{folder}" if entry.person is not None and folder else name
    picture = next((spans[ending] for ending in PICTURES if ending in spans), None)
    problem = "" if picture else f"the sample holds no picture, only {', '.join(sorted(spans))}"
    return Source(name, person, weight, picture, spans.get("txt"), spans.get("json"), problem)


def _ending(path: str) -> str:
    name = os.path.basename(path).lower()
    return next((ending for ending in SHARDS if name.endswith(f".{ending}")), name.rpartition(".")[2])


def _plain(name: str) -> str:
    """A name that a line of UTF-8 can hold: file systems allow line breaks and bytes that are no text."""
    name = name.replace(os.sep, "/").encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "?" for letter in name)
