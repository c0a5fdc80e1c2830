"""What a batch has finished, so that the next run of the same command goes on; and the report of every person.

A person's record is written before their files, after files of earlier photos were deleted. So a person is finished if
and only if the record fits their photos and all files are there, at whatever moment the machine stops.
"""

import csv
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import HyperLoRAError
from ..files import written_aside
from .people import Person, plain_name

FOLDER = "journal"
SETTINGS = "settings.json"
REPORT = "report.csv"
IDENTITIES, LORAS = KINDS = ("identities", "loras")  # what can be written, and the folders for it


@dataclass(frozen=True)
class Record:
    """What came of a person."""

    person: str
    file: str
    digest: str  # of the photos
    used: int  # photos that went into the identity; 0: there is none
    failed: tuple[str, ...] = ()  # a sentence for each photo that didn't

    @property
    def done(self) -> bool:
        """Whether the person has files."""
        return self.used > 0


def output_path(out: Path, kind: str, file: str) -> Path:
    """Where a person's identity or LoRA lies."""
    return out / kind / f"{file}.safetensors"


def is_written(out: Path, kind: str, file: str) -> bool:
    """Whether it lies there; an empty file is what a power failure may leave."""
    path = output_path(out, kind, file)
    return path.exists() and path.stat().st_size > 0


def open_journal(out: Path, settings: Mapping[str, str]) -> tuple[dict[str, Record], int]:
    """The records in the folder by person, and the number of this run.

    Raises HyperLoRAError when the folder holds results of other settings, or files that no batch wrote.
    """
    folder = out / FOLDER
    if not folder.exists():
        for kind in KINDS:
            if (out / kind).exists() and any((out / kind).iterdir()):
                raise HyperLoRAError(
                    f"{out / kind} holds files of which {folder} says nothing: choose a new folder (--out)."
                )
        with written_aside(folder / SETTINGS) as aside:
            aside.write_text(json.dumps(dict(settings), indent=2), encoding="utf-8")
    files = sorted(folder.glob("*.jsonl"))
    try:
        there = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        lines = [line for file in files for line in file.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError) as error:
        raise HyperLoRAError(
            f"The journal {folder} can't be read ({error}): make it readable, or choose a new folder (--out)."
        ) from error
    other = [
        f"{name}: {there.get(name)} there, {here} now" for name, here in settings.items() if there.get(name) != here
    ]
    if other:
        raise HyperLoRAError(
            f"{out} holds results of other settings ({'; '.join(other)}): choose another folder (--out), or the settings there."
        )
    records = {record.person: record for record in map(_record, lines) if record is not None}
    return records, 1 + max((int(file.name.partition("-")[0]) for file in files), default=0)


def _record(line: str) -> Record | None:
    """None for the half line that a killed process leaves."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return Record(**record | {"failed": tuple(record["failed"])})


class JournalFile:
    """One writer's part of the journal; on a cluster several write at once, about different people."""

    def __init__(self, out: Path, run: int):
        self.path = out / FOLDER / f"{run:06d}-{socket.gethostname()}-{os.getpid()}.jsonl"

    def write(self, record: Record) -> None:
        """Add a record. Raises HyperLoRAError when the disk is full."""
        try:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        except OSError as error:
            raise HyperLoRAError(
                f"Can't write {self.path}: {error.strerror}. Free some space, then run the same command again: it goes on."
            ) from error


def write_report(out: Path, people: Iterable[Person], records: Mapping[str, Record]) -> Path:
    """report.csv: a row for each person. Returns where it lies: report_2.csv where a spreadsheet holds the first, which on
    Windows keeps others from writing it."""
    try:
        return _report(out / REPORT, people, records)
    except HyperLoRAError:
        return _report((out / REPORT).with_stem("report_2"), people, records)


def _report(path: Path, people: Iterable[Person], records: Mapping[str, Record]) -> Path:
    with written_aside(path) as aside, aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        table.writerow(["person", "file", "status", "photos", "photos used", "photos failed", "why", "note"])
        for person in people:
            record = records.get(person.name)
            if record is None or record.digest != person.digest:
                table.writerow([person.name, "", "waiting", len(person.photos), "", "", "", _note(person, False)])
                continue
            status = "done" if record.done else "failed"
            failed = len(person.photos) - record.used
            row = [person.name, person.file if record.done else "", status, len(person.photos), record.used, failed]
            table.writerow([*row, " | ".join(record.failed), _note(person, record.done)])
    return path


def _note(person: Person, done: bool) -> str:
    if person.outdated and not done:
        return f"{person.file} is of earlier photos"
    if person.file != plain_name(person):
        return f"the files are called {person.file}: the name is another's, or does not do for a file"
    return ""
