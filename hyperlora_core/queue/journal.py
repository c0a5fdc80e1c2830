"""What a queue has finished, so that the next run of the same command goes on; and index.csv.

One line of JSON for each event, added before a job is sent and after its files are there, whole, under their names. So at
whatever moment the process is killed, a job is known as finished, or as sent, or as neither.
"""

import csv
import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import HyperLoRAError
from ..files import remove_leftovers, written_aside
from .jobs import Job

JOURNAL = "journal.jsonl"
INDEX = "index.csv"
COLUMNS = ("identity", "prompt number", "prompt", "seed", "file", "similarity", "seconds", "status", "message")
INDEX_EVERY = 10  # s; it is written from the journal at the next start anyway


@dataclass
class Record:
    """What is known of a job of this run or an earlier one."""

    person: str
    prompt_number: int | None
    prompt: str | None
    seed: int | None
    name: str  # of its files, without ending
    attempt: int = 0
    server: str = ""  # it was sent there, and nothing was heard since
    files: dict[str, int] = field(default_factory=dict)  # name -> bytes
    similarity: float | None = None
    seconds: float | None = None
    message: str = ""  # why it failed


class Journal:
    """The journal of an output folder; one process at a time."""

    def __init__(self, out: str | Path):
        """Raises HyperLoRAError when the folder can't be written to, or another process works in it."""
        self.out = Path(out)
        self.records: dict[str, Record] = {}  # by job's id
        self.client_id = ""  # how servers know whose jobs are whose
        self._index_due = 0.0
        self._jobs: Sequence[Job] = ()
        self._owners: dict[str, str] = {}  # a name of files, without ending, in lower case -> the job whose it is
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._file = (self.out / JOURNAL).open("a+b")
        except OSError as error:
            raise HyperLoRAError(
                f"Can't write {self.out / JOURNAL}: {error.strerror}. Choose a folder that you may write to (--out)."
            ) from error
        if not _lock(self._file):
            self._file.close()
            raise HyperLoRAError(f"Another queue is at work in {out}: wait for it, or choose another folder (--out).")
        # read now only: until it let go of the lock, another process may have written
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        for line in lines:
            self._read(line)
        if lines[-1]:
            self._file.write(b"\n")  # the half line that a killed process left
        if not self.client_id:
            self.client_id = uuid.uuid4().hex
            self._write({"client": self.client_id})
        remove_leftovers(self.out, "*")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def begin(self, jobs: Sequence[Job]) -> list[Job]:
        """Take up the jobs of a run; returns those that aren't finished. Each gets its name and attempt from here."""
        self._jobs = jobs
        self._owners = {
            name.casefold(): id
            for id, record in self.records.items()
            for name in (record.name, *(file.rpartition(".")[0] for file in record.files))
        }
        for job in jobs:
            record = self.records.get(job.id)
            if record is None:
                # a changed workflow or list of prompts: the earlier pictures keep their names
                record = Record(job.person, job.prompt_number, job.prompt, job.seed, self._own(job.name, job))
                self.records[job.id] = record
            record.prompt_number = job.prompt_number
            record.message = ""  # who failed is tried again
            if not all(_is_there(self.out / file, size) for file, size in record.files.items()):
                record.files = {}  # somebody deleted or broke it
            job.name, job.attempt, job.folder = record.name, record.attempt, str(self.out.absolute())
        self.write_index()
        return [job for job in jobs if not self.records[job.id].files]

    def file_names(self, job: Job, endings: Sequence[str]) -> list[str]:
        """What a job's files are called: nobody else's names, and the same if they are fetched again."""
        names = [job.name]
        if len(endings) > 1:
            names = [self._own(f"{job.name}_{number}", job) for number in range(1, len(endings) + 1)]
        return [f"{name}.{ending}" for name, ending in zip(names, endings, strict=True)]

    def _own(self, name: str, job: Job) -> str:
        """This name, with _v2, _v3... behind it where it is another job's."""
        free, version = name, 1
        while self._owners.setdefault(free.casefold(), job.id) != job.id:
            version += 1
            free = f"{name}_v{version}"
        return free

    def sent(self, job: Job, server: str) -> None:
        """The job is about to be sent."""
        self._note(job, server=server, attempt=job.attempt)

    def released(self, job: Job) -> None:
        """The job is on no server any more."""
        self._note(job, server="", attempt=job.attempt)

    def done(self, job: Job, files: dict[str, int], similarity: float | None, seconds: float | None) -> None:
        """The job's files are there."""
        self._note(job, server="", files=files, similarity=similarity, seconds=seconds, message="")

    def failed(self, job: Job, message: str) -> None:
        """The job is given up in this run."""
        self._note(job, server="", attempt=job.attempt, message=message)

    def _note(self, job: Job, **changes: Any) -> None:
        record = self.records[job.id]
        for name, value in changes.items():
            setattr(record, name, value)
        known = {"person": job.person, "prompt_number": job.prompt_number, "prompt": job.prompt, "seed": job.seed}
        self._write({"job": job.id, **known, "name": job.name, **changes})
        if time.monotonic() > self._index_due:
            self.write_index()

    def _write(self, event: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(event).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise HyperLoRAError(
                f"Can't write {self.out / JOURNAL}: {error.strerror}. Free some space, then run the same command again."
            ) from error

    def _read(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return  # a half line
        if "client" in event:
            self.client_id = event["client"]
            return
        id = event.pop("job")
        self.records[id] = replace(self.records[id], **event) if id in self.records else Record(**event)

    def write_index(self) -> str:
        """index.csv: a row for each file, and for each job of this run without one. Returns why it couldn't be written, or "":
        all of it stands in the journal, and on Windows nobody can write a file that a spreadsheet has opened."""
        ids = dict.fromkeys(job.id for job in self._jobs)
        earlier = [id for id, record in self.records.items() if id not in ids and record.files]
        self._index_due = time.monotonic() + INDEX_EVERY
        try:
            with written_aside(self.out / INDEX) as aside, aside.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(COLUMNS)
                table.writerows(row for id in (*ids, *earlier) for row in _rows(self.records[id]))
        except HyperLoRAError as error:
            return str(error)
        return ""


def _rows(record: Record) -> Iterable[tuple]:
    status = "done" if record.files else "failed" if record.message else "waiting"
    for name in record.files or [""]:
        row = (record.person, record.prompt_number, record.prompt, record.seed, name, record.similarity, record.seconds)
        yield (*("" if value is None else value for value in row), status, record.message)


def _is_there(path: Path, size: int) -> bool:
    """Whether a file is as it was fetched, or a picture that somebody has edited since: that is theirs to keep."""
    try:
        if path.stat().st_size == size:
            return True
    except OSError:
        return False
    from PIL import Image  # not above: a queue starts without it

    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # the last three: broken pictures
        return False
    return True


def _lock(file: BinaryIO) -> bool:
    """Until the file is closed or the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(2**40)  # far behind the end, since nobody else could read what is locked
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
