"""The evaluation from people to scores: identities, pictures, readings."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..encode import PhotoEncoder
from ..errors import HyperLoRAError
from ..hyperlora import LoRA
from ..identity import Identity
from ..lora import merge_branches
from ..prompt import with_trigger
from .instruments import Instruments
from .measures import Known, PictureScore, score_pictures
from .paint import BATCH, Job, Painter, fingerprint
from .people import Person
from .protocol import NONE, SCENES, Method, Protocol
from .store import PictureStore

TRUTH = "another true picture"  # the row of the people's renders: what a perfect method would reach
CEILING = "true picture, autoencoded"  # these through the base model's autoencoder: what any painted picture can reach

# told (stage, done, total); whatever it raises stops the work, and what was painted stays
Progress = Callable[[str, int, int], None]


class Results(NamedTuple):
    """Scores by row: the true pictures' (`TRUTH`, `CEILING`), then the methods', [people][pictures] each."""

    people: list[Person]
    left_out: list[str]  # people whose photos show no face
    methods: dict[str, Method]
    scores: dict[str, list[list[PictureScore]]]
    true: dict[str, list[np.ndarray]]  # pictures of the rows that no method painted, person after person
    stores: dict[str, PictureStore]


class Evaluation:
    """Paints and measures people by several methods; pictures are kept in `out`/pictures and never painted twice."""

    def __init__(
        self,
        people: Sequence[Person],
        methods: Sequence[Method],
        protocol: Protocol,
        painter: Painter,
        encoders: Mapping[str, PhotoEncoder],
        instruments: Instruments,
        out: Path,
        seed: int = 0,
        batch: int = BATCH,
        overwrite: bool = False,
    ):
        """`encoders`: one for each of the methods' checkpoints. `seed`: the one that the people were made with.

        Raises HyperLoRAError when a checkpoint lacks what a method needs, or `out` holds pictures painted otherwise.
        """
        self.people, self.methods = list(people), {method.name: method for method in methods}
        self.painter, self.encoders, self.instruments, self.batch = painter, encoders, instruments, batch
        for method in methods:
            if method.base_weight and not encoders[method.checkpoint].hyper.has_base:
                raise HyperLoRAError(
                    f'"{method.name}" needs a base branch, which {method.checkpoint} doesn\'t have: '
                    'measure it as "ID only", or with --base-weight 0.'
                )
        marks = {name: _encoder_marks(encoders[name]) for name in {m.checkpoint for m in methods if m.photos}}
        common = {**painter.settings, "seed": seed, "chances": dict(protocol.chances)}
        self.stores = {
            method.name: PictureStore(
                out / "pictures" / re.sub(r"[^\w.-]+", "_", method.name),
                {
                    **{key: value for key, value in dataclasses.asdict(method).items() if key != "checkpoint"},
                    **(marks[method.checkpoint] if method.photos else {}),
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
        known, left_out = self._read_photos(tell)
        self._paint(tell)
        renders = [picture for person in self.people for picture in person.renders]
        true = {TRUTH: renders, CEILING: self.painter.reconstruct(renders)}
        prompts = dict.fromkeys(true, SCENES) | {name: method.prompts for name, method in self.methods.items()}
        total = sum(len(self.people) * self._count(of) for of in prompts.values())
        done, none, scores = 0, None, {}
        for name, of in prompts.items():
            pictures = true[name] if name in true else self._painted(name)
            read = self.instruments.read(pictures, _part(tell, "measuring", done, len(pictures), total))
            done += len(pictures)
            none = read if name == NONE else none  # the first of the methods
            scores[name] = score_pictures(self.people, of, read, known, none if of == SCENES else None)
        return Results(self.people, left_out, self.methods, scores, true, self.stores)

    def _painted(self, name: str) -> list[np.ndarray]:
        """A method's pictures, person after person."""
        pictures = range(self._count(self.methods[name].prompts))
        return [self.stores[name].load(person.name, picture) for person in self.people for picture in pictures]

    def _count(self, prompts: str) -> int:
        """Pictures of a person for a set of prompts."""
        return len(self.people[0].prompts[prompts])

    def _read_photos(self, tell: Progress) -> tuple[Known, list[str]]:
        """Embed everybody's photos, and drop the people of whom a photo shows no face."""
        faces, kept, left_out, rows = self.instruments.faces, [], [], []
        for number, person in enumerate(self.people, start=1):
            embedded = faces.embed_all([person.gallery, *person.photos])
            if embedded.any(1).all():
                kept.append(person)
                rows.append(embedded[:2])
            else:
                which = ["gallery photo", *(f"photo {i + 1}" for i in range(len(person.photos)))]
                missing = [name for name, row in zip(which, embedded, strict=True) if not row.any()]
                left_out.append(f"{person.name}: no face was found in {', '.join(missing)}")
            tell("reading photos", number, len(self.people))
        if len(kept) < 2:
            raise HyperLoRAError(
                f"Faces were found in the photos of {len(kept)} of {len(self.people)} people, which leaves nothing to "
                "compare: check the face pack."
            )
        self.people = kept
        gallery, photos = np.stack(rows, 1)
        return Known(gallery, photos), left_out

    def _paint(self, tell: Progress) -> None:
        todo = {
            name: [
                (i, picture)
                for i, person in enumerate(self.people)
                for picture in range(self._count(method.prompts))
                if not self.stores[name].has(person.name, picture)
            ]
            for name, method in self.methods.items()
        }
        identities = self._encode(todo, tell)
        done, total = 0, sum(map(len, todo.values()))
        for name, missing in todo.items():
            method, store = self.methods[name], self.stores[name]
            for start in range(0, len(missing), self.batch):
                part = missing[start : start + self.batch]
                loras = {i: self._lora(method, identities, i) for i, _ in part}
                jobs = [self._job(method, self.people[i], picture, loras[i]) for i, picture in part]
                pictures = self.painter.paint(jobs, _part(tell, "painting", done, len(part), total))
                for (i, picture), job, pixels in zip(part, jobs, pictures, strict=True):
                    about = {"method": name, "prompt": job.prompt, "seed": str(job.seed)}
                    store.save(self.people[i].name, picture, pixels, about)
                done += len(part)

    def _encode(
        self, todo: Mapping[str, list[tuple[int, int]]], tell: Progress
    ) -> dict[tuple[str, int, int], Identity]:
        """(checkpoint, photos, person) -> identity, for the pictures to be painted."""
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
            identities[key] = self.encoders[checkpoint].encode(self.people[i].photos[:photos]).identity
            tell("encoding", number, len(wanted))
        return identities

    def _lora(self, method: Method, identities: Mapping[tuple[str, int, int], Identity], i: int) -> LoRA | None:
        """The method's LoRA of a person, to be used at weight 1."""
        if not method.photos:
            return None
        hyper = self.encoders[method.checkpoint].hyper
        identity = identities[method.checkpoint, method.photos, i]
        base = hyper.lora(identity.base_coefficients, "base") if method.base_weight else None
        return merge_branches(hyper.lora(identity.coefficients), base, method.id_weight, method.base_weight)

    def _job(self, method: Method, person: Person, picture: int, lora: LoRA | None) -> Job:
        prompt = person.prompts[method.prompts][picture]
        return Job(with_trigger(prompt) if method.trigger else prompt, person.noise[picture], lora)


def _part(tell: Progress, stage: str, done: int, size: int, total: int) -> Callable[[int, int], None]:
    """Progress of `size` pictures among `total`, of which `done` were ready before."""
    return lambda n, of: tell(stage, done + size * n // of, total)


def _encoder_marks(encoder: PhotoEncoder) -> dict[str, Any]:
    """What tells the HyperLoRA and the networks that it reads from others."""
    files = sorted(Path(model.model_file) for model in encoder.faces.app.models.values())
    faces = hashlib.sha256()
    for file in files:
        faces.update(file.read_bytes())
    return {
        "hyperlora": encoder.hyper.fingerprint,
        "face pack": faces.hexdigest()[:16],
        "clip": None if encoder.vision is None else fingerprint(encoder.vision.tower),
    }
