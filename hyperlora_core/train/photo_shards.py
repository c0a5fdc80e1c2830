"""Prepared photos on disk, and how they are written so that a killed run loses and repeats nothing.

A folder of prepared photos holds:

    photos-00000.tar ...  WebDataset shards. Photo number 7 is 000000007.jpg (the stored square), .id.jpg and .base.jpg
                          (face.identity_picture, face.base_picture), .json (caption, person, box, landmarks...) and
                          .npy (the face's embedding, float32 [512])
    index.npy             ROW [n]: where every member of every photo lies, written when all photos are done
    report.csv            a line for every photo that was looked at: kept, or rejected and why
    config.json           how they were prepared

While it is being written, rows lie in rows.part and the last shard ends in .part. A photo is done when its line stands in
the report, which is written last; what lies beyond that in the other files is cut off when the work goes on.
"""

import csv
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from ..errors import HyperLoRAError
from ..files import written_aside

MEMBERS = ("jpg", "id.jpg", "base.jpg", "json", "npy")  # in the order in which they lie in a shard
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("person", "<i8"),
        ("box", "<f4", (4,)),  # of the face, in pixels of the stored square
        ("offsets", "<u8", (len(MEMBERS),)),
        ("sizes", "<u4", (len(MEMBERS),)),
    ]
)
CONFIG, REPORT, INDEX, ROWS, LOCK = "config.json", "report.csv", "index.npy", "rows.part", ".lock"
COLUMNS = ("source", "verdict", "reason", "detail", "key", "face", "yaw", "roll", "sharpness")
KEPT, REJECTED = "kept", "rejected"
FORMAT = 1
BLOCK = 512  # tar's unit


class Sample(NamedTuple):
    """A photo that is kept."""

    source: str
    person: str
    picture: bytes  # JPEG, as the next two
    identity: bytes
    base: bytes
    embedding: np.ndarray  # float32 [512]
    box: np.ndarray  # float32 [4], pixels of `picture`
    caption: str | None
    details: dict[str, Any]  # what else the JSON tells


class Rejection(NamedTuple):
    """A photo that isn't."""

    source: str
    reason: str
    detail: str


def shard_name(number: int) -> str:
    """The file of shard 0, 1, ..."""
    return f"photos-{number:05d}.tar"


class ShardWriter:
    """Appends to a folder of prepared photos, new or begun; a context manager.

    `done` are the sources that need no further look, `verdicts` counts KEPT and, by reason, the rest. Raises
    HyperLoRAError when the folder was prepared with another config, is being written by another process, or can't be.
    """

    def __init__(self, folder: str | Path, config: Mapping[str, Any], shard_bytes: int):
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        self.done: set[str] = set()
        self.verdicts: Counter[str] = Counter()
        self.number = self.rows_done = 0  # of the shard that is open or comes next; of the photos kept
        self._shard: BinaryIO | None = None
        with self._writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / LOCK)
        with self._writing(self.folder / LOCK):
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:  # an OSError as well
                raise HyperLoRAError(
                    f"{folder} is being written by another process: wait for it, or end it."
                ) from error
        try:
            self._check_config({"format": FORMAT, **config})
            with self._writing(self.folder):
                self._resume()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_) -> None:
        for file in (self._shard, self._rows, self._report):
            if file is not None:
                # every photo was flushed; what is left is one that a full disk didn't take, and its error is on the way
                with suppress(OSError):
                    file.close()
        self._lock.release()

    def keep(self, sample: Sample, caption: str) -> None:
        """Write one photo."""
        key = f"{self.rows_done:09d}"
        record = {"caption": caption, "source": sample.source, "person": sample.person, **sample.details}
        embedding = io.BytesIO()
        np.save(embedding, sample.embedding.astype(np.float32))
        contents = (
            sample.picture, sample.identity, sample.base,
            json.dumps(record, ensure_ascii=False).encode(), embedding.getvalue(),
        )  # fmt: skip
        with self._writing(self.folder / shard_name(self.number)):
            if self._shard is None:
                self._shard = self._part().open("wb")
            offsets = [self._append(f"{key}.{member}", data) for member, data in zip(MEMBERS, contents, strict=True)]
            self._shard.flush()
            row = np.zeros((), ROW)
            row["shard"], row["person"], row["box"] = self.number, person_number(sample.person), sample.box
            row["offsets"], row["sizes"] = offsets, [len(data) for data in contents]
            self._rows.write(row.tobytes())
            self._rows.flush()
            self.rows_done += 1
            measured = [sample.details[name] for name in COLUMNS[5:]]
            self._note(sample.source, KEPT, "", "", key, *measured)
            if self._shard.tell() >= self.shard_bytes:
                self._finish_shard()

    def reject(self, rejection: Rejection) -> None:
        """Write down why a photo isn't used."""
        with self._writing(self.folder / REPORT):
            self._note(rejection.source, REJECTED, rejection.reason, rejection.detail, *[""] * 5)

    def finish(self) -> None:
        """Close the last shard and write the index: the folder can be read."""
        with self._writing(self.folder):
            if self._shard is not None:
                self._finish_shard()
            with written_aside(self.folder / INDEX) as aside, aside.open("wb") as file:
                np.save(file, np.fromfile(self.folder / ROWS, ROW))
                _sync(file)
            self._rows.close()
            (self.folder / ROWS).unlink()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HyperLoRAError(
                f"Can't write {error.filename or path}: {error.strerror or error}. Free some space, or see to it that "
                "you may write there, and run the same command again: it goes on where it stopped."
            ) from error

    def _check_config(self, config: dict[str, Any]) -> None:
        path = self.folder / CONFIG
        if not path.exists():
            with written_aside(path) as aside:
                aside.write_text(json.dumps(config, indent=2), encoding="utf-8")
            return
        saved = read_config(self.folder)
        other = [name for name in {**saved, **config} if saved.get(name) != config.get(name)]
        if other:
            values = "; ".join(f"{name} was {saved.get(name)!r}, is {config.get(name)!r}" for name in other[:4])
            raise HyperLoRAError(
                f"{self.folder} holds photos that were prepared otherwise ({values}): use the same options, or another "
                "folder (--out)."
            )

    def _resume(self) -> None:
        report, rows = self.folder / REPORT, self.folder / ROWS
        if not rows.exists():  # new, or finished before: more photos are added
            before = read_index(self.folder).tobytes() if (self.folder / INDEX).exists() else b""
            with written_aside(rows) as aside:
                aside.write_bytes(before)
        if not report.exists() or not report.stat().st_size:
            with written_aside(report) as aside:
                aside.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        kept = self._read_report(report, self._rows_on_disk(rows))
        _cut(rows, len(kept) * ROW.itemsize)
        self._rows, self._report = rows.open("ab"), report.open("ab")
        self.rows_done = len(kept)
        if len(kept):
            last = kept[-1]
            self.number = int(last["shard"])
            if (self.folder / shard_name(self.number)).exists():
                self.number += 1
            else:
                _cut(self._part(), _end(last))
                self._shard = self._part().open("ab")
                if self._shard.tell() >= self.shard_bytes:  # killed between its last photo and its end
                    self._finish_shard()

    def _rows_on_disk(self, rows: Path) -> np.ndarray:
        """The rows whose photos lie whole in their shards: after a power cut the files may be shorter than told."""
        found = np.fromfile(rows, ROW)
        if len(found):
            last = int(found[-1]["shard"])
            finished, part = self.folder / shard_name(last), self._part(last)
            size = part.stat().st_size if part.exists() else 0
            if not finished.exists():
                found = found[(found["shard"] < last) | (_end(found) <= size)]
        return found

    def _read_report(self, path: Path, rows: np.ndarray) -> np.ndarray:
        """Take over what the report says of photos that are on disk, cut off the rest; returns the rows that count."""
        lines = path.read_bytes().splitlines(keepends=True)
        counted, kept = 1, 0
        for line in lines[1:]:
            record = _record(line)
            if record is None or (record[1] == KEPT and kept == len(rows)):
                break
            kept += record[1] == KEPT
            counted += 1
            self.done.add(record[0])
            self.verdicts[record[2] or KEPT] += 1
        _cut(path, sum(map(len, lines[:counted])))
        return rows[:kept]

    def _append(self, name: str, data: bytes) -> int:
        """Write a member at the end of the open shard; returns where its data begins."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        self._shard.write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._shard.tell()
        self._shard.write(data + b"\0" * (-len(data) % BLOCK))
        return offset

    def _note(self, *values: object) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([" ".join(str(value).splitlines()) for value in values])
        self._report.write(line.getvalue().encode("utf-8"))
        self._report.flush()
        self.done.add(str(values[0]))
        self.verdicts[str(values[2]) or KEPT] += 1

    def _finish_shard(self) -> None:
        self._shard.write(b"\0" * 2 * BLOCK)  # a tar's end
        # rows and report first: a finished shard must not hold photos that they don't know of
        for file in (self._rows, self._report, self._shard):
            _sync(file)
        self._shard.close()
        os.replace(self._part(), self.folder / shard_name(self.number))
        self._shard = None
        self.number += 1

    def _part(self, number: int | None = None) -> Path:
        return self.folder / f"{shard_name(self.number if number is None else number)}.part"


def read_config(folder: Path) -> dict[str, Any]:
    """How a folder's photos were prepared. Raises HyperLoRAError when it isn't such a folder."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        known = config["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HyperLoRAError(
            f"{folder} holds no prepared photos ({error}). Run: hyperlora prepare PHOTOS --out {folder}"
        ) from error
    if not known:
        raise HyperLoRAError(f"{folder} was prepared by another version of this program: prepare the photos again.")
    return config


def read_index(folder: Path) -> np.ndarray:
    """ROW [n], memory-mapped. Raises HyperLoRAError when it isn't there or is damaged."""
    try:
        index = np.load(folder / INDEX, mmap_mode="r")
    except FileNotFoundError as error:
        raise HyperLoRAError(
            f"The photos in {folder} aren't all prepared: run the same hyperlora prepare again, it goes on where it "
            "stopped."
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise HyperLoRAError(f"{folder / INDEX} can't be read ({error}): prepare the photos again.") from error
    if index.dtype != ROW or index.ndim != 1:
        raise HyperLoRAError(f"{folder / INDEX} is not an index of prepared photos: prepare the photos again.")
    return index


def person_number(person: str) -> int:
    """A person's number, from the name alone, so that it doesn't depend on who came before."""
    return int.from_bytes(blake2b(person.encode(), digest_size=8).digest(), "little") >> 1


def _end(row: np.ndarray) -> np.ndarray:
    """Where a photo's last member ends in its shard."""
    return row["offsets"][..., -1].astype(np.int64) + -(-row["sizes"][..., -1].astype(np.int64) // BLOCK) * BLOCK


def _record(line: bytes) -> list[str] | None:
    """A line of the report; None when it was not written to its end."""
    try:
        record = next(csv.reader([line.decode("utf-8")]))
    except (UnicodeDecodeError, csv.Error):
        return None
    return record if line.endswith(b"\n") and len(record) == len(COLUMNS) else None


def _cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(int(size))


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
