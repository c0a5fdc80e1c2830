"""The evaluation from people to scores: identities, pictures, readings."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import HyperLoRAError
from ..photo import read_photo
from .instruments import Instruments, Readings
from .measures import Known, PictureScore, score_pictures
from .paint import BATCH, Job, Painter, PersonPainter
from .people import Person
from .protocol import NONE, SCENES, Method, Protocol
from .store import PictureFolder, PictureStore, read_about, read_picture

TRUTH = "another true picture"  # the row of the people's renders: what a perfect method would reach
CEILING = "true picture, autoencoded"  # these through the base model's autoencoder: what any painted picture can reach
# texts in a painted picture: the photos that it is of, and the seconds that it took
PHOTOS, PREPROCESSING, INFERENCE = "photos", "preprocessing", "inference"
# of a Method, what doesn't decide over the pictures; the checkpoint is told by its painter's settings
NOT_PAINTED = ("checkpoint", "pictures", "number")

# told (stage, done, total); whatever it raises stops the work, and what was painted stays
Progress = Callable[[str, int, int], None]


class Results(NamedTuple):
    """Scores by row: the true pictures' (`TRUTH`, `CEILING`) where people are drawn, then the methods',
    [people][pictures] each.
    """

    people: list[Person]
    left_out: list[str]  # people whose photos show no face, or of whom pictures are missing
    methods: dict[str, Method]
    scores: dict[str, list[list[PictureScore]]]
    true: dict[str, list[np.ndarray]]  # pictures of the rows that no method painted, person after person
    paths: dict[str, list[list[Path]]]  # of the methods' pictures
    speeds: dict[str, np.ndarray]  # seconds [pictures, 2] for preprocessing and inference, of what was painted here
    kinds: Mapping[str, str]  # prompt -> class
    notes: list[str]  # who measured

    def picture(self, row: str, person: int, number: int) -> np.ndarray:
        """uint8 [h, w, 3]."""
        if row in self.true:
            return self.true[row][person * len(self.scores[row][person]) + number]
        return read_picture(self.paths[row][person][number])


class Evaluation:
    """Paints and measures people by several methods; pictures are kept in `out`/pictures and never painted twice."""

    def __init__(
        self,
        people: Sequence[Person],
        methods: Sequence[Method],
        protocol: Protocol,
        painter: Painter | None,
        person_painters: Mapping[str, PersonPainter],
        instruments: Instruments,
        out: Path,
        seed: int = 0,
        batch: int = BATCH,
        overwrite: bool = False,
    ):
        """`painter`: of the rows without a person, and of `CEILING`; None where there are none. `person_painters`: one for
        each of the methods' checkpoints. `seed`: the one that the people were made with.

        Raises HyperLoRAError when a checkpoint lacks what a method needs, `out` holds pictures painted otherwise, or a
        folder of given pictures has none.
        """
        self.people, self.methods = list(people), {method.name: method for method in methods}
        self.painter, self.person_painters, self.instruments = painter, person_painters, instruments
        self.kinds, self.batch = protocol.kinds, batch
        # where all get the same, a method that needs no photo paints each picture once for everybody
        self.shared = len({(tuple(sorted(person.prompts.items())), person.noise) for person in people}) == 1
        for method in methods:
            if method.photos:
                person_painters[method.checkpoint].check(method)
        used = {method.checkpoint for method in methods if method.photos}
        settings = {name: person_painters[name].settings for name in used}
        common = {"seed": seed, "chances": dict(protocol.chances)}
        self.stores = {
            method.name: PictureFolder(method.pictures, method.number)
            if method.pictures
            else PictureStore(
                out / "pictures" / re.sub(r"[^\w.-]+", "_", method.name),
                {
                    **{key: value for key, value in dataclasses.asdict(method).items() if key not in NOT_PAINTED},
                    **(settings[method.checkpoint] if method.photos else painter.settings),
                    **common,
                    "texts": protocol.prompts[method.prompts],
                },
                overwrite,
            )
            for method in methods
        }

    def run(self, progress: Progress | None = None) -> Results:
        """Paint what is missing, then measure everything."""
        tell = progress or (lambda _stage, _done, _total: None)
        left_out = self._drop_incomplete()
        known, faceless = self._read_photos(tell)
        self._paint(tell)
        true = self._true_pictures()
        paths = {name: [self._paths(name, person) for person in self.people] for name in self.methods}
        prompts = dict.fromkeys(true, SCENES) | {name: method.prompts for name, method in self.methods.items()}
        # "none" first, since the others are compared with it
        order = sorted(prompts, key=lambda row: (row not in true, row != NONE))
        total = sum(len(self.people) * self._count(of) for of in prompts.values())
        texts = self._read_texts()
        done, none, scores = 0, None, {}
        for row in order:
            part = _part(tell, "measuring", done, len(self.people) * self._count(prompts[row]), total)
            if row in true:
                read = self.instruments.read(true[row], len(true[row]), part)
            else:
                read = self._read([path for of_person in paths[row] for path in of_person], part)
            done += len(self.people) * self._count(prompts[row])
            none = read if row == NONE else none
            base = none if prompts[row] == SCENES else None
            asked = texts if self._follows_prompt(row) else None
            scores[row] = score_pictures(self.people, prompts[row], read, known, base, asked)
        speeds = {name: _speeds(paths[name]) for name, method in self.methods.items() if not method.pictures}
        return Results(
            self.people,
            [*left_out, *faceless],
            self.methods,
            scores,
            true,
            paths,
            speeds,
            self.kinds,
            self.instruments.notes,
        )

    def _follows_prompt(self, row: str) -> bool:
        method = self.methods.get(row)
        by_photo = method is not None and method.photos
        return not by_photo or self.person_painters[method.checkpoint].follows_prompt

    def _true_pictures(self) -> dict[str, list[np.ndarray]]:
        renders = [picture for person in self.people for picture in person.renders]
        if not renders:
            return {}
        return {TRUTH: renders} | ({CEILING: self.painter.reconstruct(renders)} if self.painter else {})

    def _paths(self, name: str, person: Person) -> list[Path]:
        """Where a method's pictures of a person lie or will lie."""
        method = self.methods[name]
        owner = "" if self.shared and not method.photos and not method.pictures else person.name
        return [self.stores[name].path(owner, tag) for tag in person.tags[: self._count(method.prompts)]]

    def _read(self, paths: Sequence[Path], progress: Callable[[int, int], None]) -> Readings:
        """Read pictures, each file once."""
        places = {path: place for place, path in enumerate(dict.fromkeys(paths))}
        read = self.instruments.read(map(read_picture, places), len(places), progress)
        return read.take([places[path] for path in paths])

    def _read_texts(self) -> dict[str, np.ndarray] | None:
        """Prompt -> CLIP's view of it."""
        if self.instruments.view.texts is None:
            return None
        prompts = sorted({prompt for of in self.people[0].prompts.values() for prompt in of})
        return dict(zip(prompts, self.instruments.view.texts(prompts), strict=True))

    def _count(self, prompts: str) -> int:
        """Pictures of a person for a set of prompts."""
        return len(self.people[0].prompts[prompts])

    def _drop_incomplete(self) -> list[str]:
        """Drop the people of whom a folder of given pictures lacks some, so that all methods are measured on the same."""
        kept, left_out = [], []
        for person in self.people:
            lacks = []
            for name, method in self.methods.items():
                paths = self._paths(name, person) if method.pictures else []
                missing = [path.stem for path in paths if not path.is_file()]
                if missing:
                    lacks.append(f"{name} has {len(paths) - len(missing)} of {len(paths)} pictures, not {missing[0]}")
            if lacks:
                left_out.append(f"{person.name}: {'; '.join(lacks)}")
            else:
                kept.append(person)
        if not kept:
            raise HyperLoRAError(
                f"Nobody has all pictures ({left_out[0]}). Make what is missing, or give --seeds and --prompts for which "
                "there are pictures."
            )
        self.people = kept
        return left_out

    def _read_photos(self, tell: Progress) -> tuple[Known, list[str]]:
        """Read everybody's photos, and drop the people of whom a photo shows no face."""
        instruments, kept, left_out, rows = self.instruments, [], [], []
        for number, person in enumerate(self.people, start=1):
            named = {f"photo {i}": photo for i, photo in enumerate(person.photos, start=1)}
            if person.gallery is not None:
                named["gallery photo"] = person.gallery
            read = instruments.read(map(read_photo, named.values()), len(named))
            missing = [name for name, found in zip(named, read.found, strict=True) if not found]
            if missing:
                left_out.append(f"{person.name}: no face was found in {', '.join(missing)}")
            else:
                kept.append(person)
                rows.append((read.embeddings[0 if person.gallery is None else -1], read.embeddings[0], read.faces[0]))
            tell("reading photos", number, len(self.people))
        if len(kept) < 2:
            raise HyperLoRAError(
                f"Faces were found in the photos of {len(kept)} of {len(self.people)} people, which leaves nothing to "
                "compare: check the face pack."
            )
        self.people = kept
        return Known(*(np.stack(side) for side in zip(*rows, strict=True))), left_out

    def _paint(self, tell: Progress) -> None:
        todo = {name: self._todo(name) for name, method in self.methods.items() if not method.pictures}
        identities = self._encode(todo, tell)
        done, total = 0, sum(map(len, todo.values()))
        for name, missing in todo.items():
            method, store = self.methods[name], self.stores[name]
            for start in range(0, len(missing), self.batch):
                part = missing[start : start + self.batch]
                timed = [_timed(self._job, method, identities, *place) for place in part]
                jobs = [job for job, _ in timed]
                step = _part(tell, "painting", done, len(part), total)
                painter = self.person_painters[method.checkpoint] if method.photos else self.painter
                pictures, seconds = _timed(painter.paint, jobs, step)
                for (i, picture), (job, making), pixels in zip(part, timed, pictures, strict=True):
                    person, about = self.people[i], {"method": name, "prompt": job.prompt, "seed": str(job.seed)}
                    about[INFERENCE] = f"{seconds / len(part):.6f}"
                    if method.photos:
                        encoding = identities[method.checkpoint, method.photos, i][1]
                        about |= {PHOTOS: person.digest, PREPROCESSING: f"{encoding + making:.6f}"}
                    owner = person.name if method.photos or not self.shared else ""
                    store.save(owner, person.tags[picture], pixels, about)
                done += len(part)

    def _todo(self, name: str) -> list[tuple[int, int]]:
        """(person, picture) of what is still to be painted; a file that everybody shares once."""
        method, todo = self.methods[name], {}
        for i, person in enumerate(self.people):
            for picture, path in enumerate(self._paths(name, person)):
                if not path.exists() or (method.photos and read_about(path).get(PHOTOS, "") != person.digest):
                    todo.setdefault(path, (i, picture))
        return list(todo.values())

    def _encode(
        self, todo: Mapping[str, list[tuple[int, int]]], tell: Progress
    ) -> dict[tuple[str, int, int], tuple[Any, float]]:
        """(checkpoint, photos, person) -> who it is and the seconds it took, for the pictures to be painted."""
        wanted = sorted(
            {
                (method.checkpoint, method.photos, i)
                for name, method in self.methods.items()
                if method.photos
                for i, _ in todo[name]
            }
        )
        identities = {}
        for number, key in enumerate(wanted, start=1):
            checkpoint, photos, i = key
            identities[key] = _timed(self.person_painters[checkpoint].encode, self.people[i].photos[:photos])
            tell("encoding", number, len(wanted))
        return identities

    def _job(
        self, method: Method, identities: Mapping[tuple[str, int, int], tuple[Any, float]], i: int, picture: int
    ) -> Job:
        prompt, noise = self.people[i].prompts[method.prompts][picture], self.people[i].noise[picture]
        if not method.photos:
            return Job(prompt, noise)
        who, _ = identities[method.checkpoint, method.photos, i]
        return self.person_painters[method.checkpoint].job(method, who, prompt, noise)


def _part(tell: Progress, stage: str, done: int, size: int, total: int) -> Callable[[int, int], None]:
    """Progress of `size` pictures among `total`, of which `done` were ready before."""
    return lambda n, of: tell(stage, done + size * n // of, total)


def _timed(work: Callable, *arguments: Any) -> tuple[Any, float]:
    """What `work` answers, and the seconds until it is there."""
    start = time.perf_counter()
    result = work(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _speeds(paths: Iterable[Iterable[Path]]) -> np.ndarray:
    """Seconds [pictures, 2] for preprocessing and inference, as the pictures themselves say."""
    texts = [read_about(path) for path in dict.fromkeys(path for of_person in paths for path in of_person)]
    known = [(float(said.get(PREPROCESSING, 0)), float(said[INFERENCE])) for said in texts if INFERENCE in said]
    return np.array(known).reshape(-1, 2)
