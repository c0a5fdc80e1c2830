"""The same stages on Ray Data: faces on every core of a cluster, then networks and files on its GPUs, or one core.

All machines must see the photos, the models and the output folder under the same paths, and have this library.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HyperLoRAError
from ..face.providers import shared_provider
from ..packages import require
from .encode import PeopleEncoder
from .faces import Wanted
from .journal import Record
from .models import Models
from .people import Person
from .workers import AHEAD, Workers
from .write import BatchConfig, Writer

LOCAL = "local"
LOST = "{}: a process of the cluster ended while it had this person in hand: run the same command again."


class FaceStage:
    """Stage 1 in a process of Ray: a person -> the person and what each photo shows."""

    def __init__(self, face_pack: str, provider: str, wanted: Wanted):
        # a process of its own, so that a photo that ends it costs the same here as on one machine: itself
        self.workers = Workers(1, face_pack, provider, wanted)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        person: Person = pickle.loads(row["data"])
        looks = self.workers.look(person.photos, AHEAD)
        return {"data": pickle.dumps([(person, look) for look in looks])}


class FileStage:
    """Stages 2 and 3 in a process of Ray, which share a checkpoint: people with what their photos show -> records, or an error."""

    def __init__(self, models: Models, config: BatchConfig, out: Path, run: int):
        opened = models.open()
        self.encoder = PeopleEncoder(opened.hyper, opened.vision)
        self.writer = Writer(opened.hyper, config, out, run)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        seen = [look for data in batch["data"] for look in pickle.loads(data)]
        try:
            answers = self.writer(list(self.encoder.people(seen, self.writer.config.group)))
        except HyperLoRAError as error:  # a full disk, say: to be told, and not taken for a lost process
            answers = [error]
        return {"data": [pickle.dumps(answer) for answer in answers]}


def on_ray(
    people: Sequence[Person],
    models: Models,
    wanted: Wanted,
    writer: Writer,
    workers: int,
    address: str,
    tick: Callable[[int], None],
) -> Iterator[Record]:
    """Run the stages for `people` with `workers` processes for faces; their records as they are finished.

    `address`: of a Ray cluster, or "local", which starts one on this machine. Raises MissingPackageError without Ray.
    """
    if not people:
        return
    data = require("ray.data", "Running on a cluster")
    ray_errors = require("ray.exceptions", "Running on a cluster").RayError
    config, models = writer.config, models.absolute()
    by_name = {person.name: person for person in people}
    with _connected(address, workers):
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.max_errored_blocks = -1  # what can't be done is told, and stops nobody else
        gpus = _gpus() if models.device != "cpu" else 0
        dataset = (
            # a block each, so that no more than one person is lost at once
            data.from_items([{"data": pickle.dumps(person)} for person in people], override_num_blocks=len(people))
            .map(
                FaceStage,
                fn_constructor_args=(str(models.face_folder()), shared_provider(models.provider, workers), wanted),
                compute=data.ActorPoolStrategy(min_size=1, max_size=workers),
            )
            .map_batches(
                FileStage,
                fn_constructor_args=(models, config, writer.out, writer.run),
                batch_size=config.group,
                compute=data.ActorPoolStrategy(min_size=1, max_size=gpus or workers),
                num_gpus=1 if gpus else 0,
            )
        )
        try:
            for row in dataset.iter_rows():
                answer: Record | HyperLoRAError = pickle.loads(row["data"])
                if isinstance(answer, HyperLoRAError):
                    raise answer
                tick(len(by_name.pop(answer.person).photos))
                yield answer
        except ray_errors as error:
            raise HyperLoRAError(
                f"The work on Ray stopped ({_last_line(error)}): see that every machine has this library, the models and "
                "the photos, then run the same command again; it goes on."
            ) from error
    for person in by_name.values():
        tick(len(person.photos))
        yield Record(person.name, person.file, person.digest, 0, (LOST.format(person.name),))


def _last_line(error: Exception) -> str:
    """Ray's messages hold whole tracebacks."""
    return str(error).strip().splitlines()[-1]


def _gpus() -> int:
    return int(require("ray", "Running on a cluster").cluster_resources().get("GPU", 0))


@contextmanager
def _connected(address: str, workers: int) -> Iterator[None]:
    """A connection to Ray, unless the process has one already."""
    ray = require("ray", "Running on a cluster")
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for a report to Ray's makers
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        options |= {"num_cpus": workers + 1, "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise HyperLoRAError(
            f"No Ray cluster answers at {address} ({_last_line(error)}): start one (ray start --head), or give --ray local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
