"""The jobs of a queue: every person with every prompt and every seed, told apart by their content."""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..batch.people import file_names, list_people
from ..errors import HyperLoRAError
from .workflow import Input, Workflow, with_values

MOST_SEED = 2**64 - 1  # that samplers take
_IDS = uuid.UUID("6f1d2d0e-3c0b-5b8e-9a44-0d1c2b7a9e55")  # any constant: the space of our prompt ids


class Photo(NamedTuple):
    """A photo and what is in it."""

    path: str
    digest: str  # sha256 of the file

    @property
    def upload_name(self) -> str:
        """Its name on servers: the same for the same picture, nobody else's, and no person's name."""
        return self.digest[:32] + Path(self.path).suffix.lower()


class Inputs(NamedTuple):
    """Which inputs of the workflow vary."""

    photos: list[Input]  # a person's photos, in order
    prompts: list[Input]  # the same text in each
    seeds: list[Input]


@dataclass(eq=False)
class Job:
    """One picture (or batch of pictures) to be made; an axis that doesn't vary is "" or None."""

    id: str  # of its content: 16 hex digits
    person: str
    photos: tuple[Photo, ...]
    prompt_number: int | None  # from 1
    prompt: str | None
    seed: int | None
    name: str = ""  # of its files, without ending
    folder: str = ""  # where they go
    attempt: int = 0  # how often a server has ended it without a picture
    tries: int = 0  # the same in this run
    refused: dict[str, str] = field(default_factory=dict)  # server -> its words

    @property
    def prompt_id(self) -> str:
        """How servers know this attempt; the same in every run, so that a lost answer is found again, and another one for
        another folder: who asks for the pictures there means new ones."""
        return str(uuid.uuid5(_IDS, f"{self.id} {self.attempt} {self.folder}"))

    def build(self, workflow: Workflow, inputs: Inputs, uploaded: Mapping[str, str]) -> Workflow:
        """The workflow of this job. `uploaded`: a photo's digest -> what Load Image calls it on the server."""
        values: dict[Input, str | int] = {
            place: uploaded[photo.digest] for place, photo in zip(inputs.photos, self.photos, strict=True)
        }
        if self.prompt is not None:
            values |= dict.fromkeys(inputs.prompts, self.prompt)
        if self.seed is not None:
            values |= dict.fromkeys(inputs.seeds, self.seed)
        return with_values(workflow, values)


def plan_jobs(
    workflow: Workflow,
    inputs: Inputs,
    people: Sequence[tuple[str, tuple[Photo, ...]]] = (),
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Job]:
    """All jobs, in the order in which servers should do them: a person's identity is then encoded once.

    `people`: (name, photos), as many photos as `inputs.photos`. What is empty stays as it is in the workflow.
    """
    varied = {place for places in inputs for place in places}
    fixed = {
        node: [spec["class_type"], {name: v for name, v in spec["inputs"].items() if Input(node, name) not in varied}]
        for node, spec in workflow.items()
    }
    # titles and the places of keys in the file don't count
    template = _digest([fixed, sorted(inputs.photos), sorted(inputs.prompts), sorted(inputs.seeds)])
    jobs = {}
    for person, photos in people or [("", ())]:
        for number, prompt in enumerate(prompts, start=1) if prompts else [(None, None)]:
            for seed in seeds or [None]:
                id = _digest([template, person, [photo.digest for photo in photos], prompt, seed])[:16]
                parts = (person, f"p{number:02}" if number else "", f"s{seed}" if seeds else "")
                name = "_".join(part for part in parts if part)
                # a prompt that stands in the file twice is one job
                jobs.setdefault(id, Job(id, person, photos, number, prompt, seed, name or "picture"))
    return list(jobs.values())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_people(
    folder: str | Path, photos_each: int, progress: Callable[[int, int], None] | None = None
) -> tuple[list[tuple[str, tuple[Photo, ...]]], list[str]]:
    """(name for files, photos) of everybody in a folder, and sentences about photos that aren't used.

    Each folder in it is a person, and so is each photo that lies there. `photos_each`: what the workflow takes.
    Raises HyperLoRAError when somebody has fewer, or a photo can't be read. `progress(done, total)` may raise to stop.
    """
    people, notes = list_people(folder), []
    names = file_names(people, {})
    read = []
    for done, person in enumerate(people, start=1):
        notes += person.problems
        if len(person.photos) < photos_each:
            raise HyperLoRAError(
                f"{person.name} in {folder} has {len(person.photos)} photos, but the workflow takes {photos_each}: "
                "add photos, or name fewer inputs with --photo-input."
            )
        if len(person.photos) > photos_each:
            notes.append(
                f"{person.name}: {photos_each} of {len(person.photos)} photos are used, the first by name, "
                "since the workflow takes no more."
            )
        read.append((names[person.name], tuple(_read_photo(path) for path in person.photos[:photos_each])))
        if progress is not None:
            progress(done, len(people))
    return read, notes


def _read_photo(path: str) -> Photo:
    try:
        return Photo(path, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    except OSError as error:
        raise HyperLoRAError(
            f"{path} can't be read ({error.strerror}): change its permissions, or remove it."
        ) from error


def read_prompts(path: str | Path) -> list[str]:
    """A prompt per line; empty lines and those that begin with # don't count. Raises HyperLoRAError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HyperLoRAError(f"The prompts {path} can't be read ({error}): give a text file in UTF-8.") from error
    lines = (line.strip() for line in text.splitlines())
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise HyperLoRAError(f"The prompts' file {path} is empty: write a prompt on each line.")
    return prompts


def parse_seeds(text: str) -> list[int]:
    """Seeds as "1-4", "7", "1-4,10", each once, in this order. Raises HyperLoRAError."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MOST_SEED:
            raise HyperLoRAError(f'Seeds "{text}" can\'t be read: write 1-4, or 1,2,10-20 (0 to {MOST_SEED}).')
        if len(seeds) + last - first >= 1_000_000:
            raise HyperLoRAError(f'Seeds "{text}" are more than a million: take fewer at once.')
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)
