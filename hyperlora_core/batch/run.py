"""A batch from beginning to end: who is to be done, the three stages, the report."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from ..encode import PhotoEncoder
from ..errors import HyperLoRAError
from ..face.providers import shared_provider
from ..files import remove_leftovers
from ..identity import Identity
from .encode import Encoded, PeopleEncoder, batches
from .journal import FOLDER, IDENTITIES, KINDS, LORAS, Record, is_written, open_journal, output_path, write_report
from .models import Models
from .people import Person, file_names, list_people, plain_name
from .workers import AHEAD, Workers
from .write import BatchConfig, Writer

Progress = Callable[[int, int, int, int], None]


class Summary(NamedTuple):
    """What is in the folder now."""

    done: int  # people
    failed: int
    earlier: int  # of those done, finished by earlier runs
    renamed: dict[str, str]  # person -> name of their files, where it isn't the person's
    report: Path


class _Plan(NamedTuple):
    """The people, and those of them who want work."""

    people: list[Person]
    todo: list[Person]  # from their photos
    mix: list[Person]  # whose identity is there, and only the LoRA isn't


def run_batch(
    photos: str | Path,
    out: str | Path,
    models: Models,
    config: BatchConfig,
    workers: int = 1,
    retry: bool = False,
    cluster: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Identities and LoRAs of the people in `photos` (people.list_people) into `out`/identities, `out`/loras, report.csv.

    People whom an earlier run finished are left alone while their photos are the same; people without any usable photo
    too, unless `retry`. `workers` processes look for faces. `cluster`: a Ray address, or "local"; there `workers` is the
    number of its processes. `progress(photos done, photos, people done, people failed)` counts this run's work; it may
    raise to stop, which loses nothing. A photo or person that fails stands in the report and stops nobody else.
    Raises HyperLoRAError when nothing can be read or written, or the folder holds results of other settings.
    """
    if workers < 1:
        raise HyperLoRAError(f"{workers} processes look at nothing: give --workers 1 or more.")
    out = Path(out).absolute()
    people = list_people(photos, [out, *(out / name for name in (*KINDS, FOLDER))])
    opened = models.open()
    config.check(opened.hyper)
    records, run = open_journal(out, _settings(opened, config))
    for kind in KINDS:
        remove_leftovers(out / kind, "*.safetensors")
    plan = _planned(people, records, out, config.write, retry)
    writer = Writer(opened.hyper, config, out, run)
    encoder = PeopleEncoder(opened.hyper, opened.vision)
    del opened  # the face networks are the workers'

    count = _Count(sum(len(person.photos) for person in plan.todo), progress)
    try:
        todo = plan.todo + _mix_known(plan.mix, records, writer, count)
        empty = [Encoded(person, None, (*person.problems, _no_photos(person))) for person in todo if not person.photos]
        count.people(records, writer(empty))
        todo = [person for person in todo if person.photos]
        if cluster is None:
            finished = _on_this_machine(todo, models, encoder, writer, workers, count.photos)
        else:
            from .on_ray import on_ray

            finished = on_ray(todo, models, encoder.wanted(config.options), writer, workers, cluster, count.photos)
        with closing(finished):  # the processes end before the report is written
            for record in finished:
                count.people(records, [record])
    finally:
        report = write_report(out, plan.people, records)
    done = sum(records[person.name].done for person in plan.people)
    return Summary(
        done=done,
        failed=len(people) - done,
        earlier=done - count.finished,
        renamed={person.name: person.file for person in plan.people if person.file != plain_name(person)},
        report=report,
    )


def _planned(
    people: Iterable[Person], records: Mapping[str, Record], out: Path, kinds: Sequence[str], retry: bool
) -> _Plan:
    names = file_names(people, {name: record.file for name, record in records.items()})
    plan = _Plan([], [], [])
    for person in people:
        record, file = records.get(person.name), names[person.name]
        same = record is not None and record.digest == person.digest
        there = [kind for kind in KINDS if is_written(out, kind, file)]
        missing = [kind for kind in kinds if kind not in there]
        person = replace(person, file=file, outdated=bool(there) and not (same and record.done))
        plan.people.append(person)
        if same and not record.done:
            if retry:
                plan.todo.append(person)
        elif not same:
            plan.todo.append(person)
        elif missing == [LORAS] and IDENTITIES in there:
            plan.mix.append(person)
        elif missing:
            plan.todo.append(person)
    return plan


def _mix_known(
    people: Sequence[Person], records: Mapping[str, Record], writer: Writer, count: "_Count"
) -> list[Person]:
    """LoRAs from identities that earlier runs wrote; returns the people whose identity can't be read any more."""
    unreadable = []
    for group in batches(people, writer.config.group):
        known = []
        for person in group:
            try:
                identity = Identity.load(output_path(writer.out, IDENTITIES, person.file))
            except HyperLoRAError:
                unreadable.append(person)
                count.total += len(person.photos)
            else:
                known.append(Encoded(person, identity, records[person.name].failed))
        count.people(records, writer(known, (LORAS,)))
    return unreadable


def _on_this_machine(
    people: Sequence[Person],
    models: Models,
    encoder: PeopleEncoder,
    writer: Writer,
    workers: int,
    tick: Callable[[int], None],
) -> Iterator[Record]:
    group = writer.config.group
    provider = shared_provider(models.provider, workers)
    with Workers(workers, models.face_folder(), provider, encoder.wanted(writer.config.options)) as pool:
        # the processes go on while a group is encoded and written
        looks = pool.look((photo for person in people for photo in person.photos), max(AHEAD * workers, 2 * group))
        seen = zip((person for person in people for _ in person.photos), looks, strict=True)
        for encoded in batches(encoder.people(seen, group, tick), group):
            yield from writer(encoded)


class _Count:
    """What this run has done, told to `progress`."""

    def __init__(self, total: int, progress: Progress | None):
        self.total, self.progress = total, progress
        self.done = self.finished = self.failed = 0
        self.photos(0)

    def photos(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total, self.finished, self.failed)

    def people(self, records: dict[str, Record], new: Iterable[Record]) -> None:
        for record in new:
            records[record.person] = record
            self.finished += record.done
            self.failed += not record.done
        self.photos(0)


def _no_photos(person: Person) -> str:
    return f"{person.name}: no photo is in this folder: put some there, or delete it."


def _settings(encoder: PhotoEncoder, config: BatchConfig) -> dict[str, str]:
    """All that decides what a person's files hold."""
    return {
        "checkpoint": f"{encoder.hyper.name} {encoder.hyper.fingerprint}",
        "face recognition": encoder.faces.recognition_name,
        "CLIP": encoder.vision.name if encoder.vision is not None else "none",
        "naming": config.naming,
        "base weight": f"{config.base_weight:g}",
        **{name.replace("_", " "): str(value) for name, value in asdict(config.options).items()},
    }
