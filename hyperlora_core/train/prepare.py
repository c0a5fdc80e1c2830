"""Photos of people -> what HyperLoRA is trained on: the work of `hyperlora prepare`.

Every photo is read, searched for its one face, judged (photo_rules.py), cut, and written into shards (photo_shards.py) in
the order of the input, whatever the number of processes.
"""

import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from .. import packages
from ..errors import HyperLoRAError
from ..face.analyzer import FaceAnalyzer
from ..face.pack import RECOGNITION, find_networks
from ..face.prepare import base_picture, identity_picture
from ..face.providers import shared_provider
from ..photo import read_photo
from .config import flat
from .photo_rules import (
    PhotoRules,
    Rejected,
    check_pose,
    check_resolution,
    check_sharpness,
    face_side,
    head_pose,
    sharpness,
    the_face,
    training_square,
)
from .photo_shards import KEPT, REPORT, Rejection, Sample, ShardWriter
from .photo_sources import Source, list_entries, read_entries

FILES, BLIP2 = CAPTIONS = ("files", "blip2")
CROP = 448  # px that the shorter side of ID and base picture is shrunk to: twice what CLIP ViT-L/14 looks at
AHEAD = 4  # photos in hand per process
CAPTIONED = 16  # photos that are described together

Progress = Callable[[int, int, int, int], None]
Captioner = Callable[[list[Image.Image]], list[str]]


@dataclass(frozen=True)
class PrepareConfig:
    """What decides how a prepared photo looks; a folder holds photos of one such config."""

    rules: PhotoRules = field(default_factory=PhotoRules)
    people_folders: bool = False  # the folders below the one that is named are people, otherwise each photo is one
    captions: tuple[str, ...] = (FILES,)  # where captions come from: FILES, then BLIP2
    caption: str = ""  # for photos that have none then; "": they are rejected
    quality: int = 95  # JPEG


class Summary(NamedTuple):
    """What is in the folder now."""

    kept: int
    rejected: dict[str, int]  # by reason


def prepare_photos(
    photos: Sequence[str | Path],
    folder: str | Path,
    face_pack: str | Path,
    config: PrepareConfig = PrepareConfig(),
    captioner: Captioner | None = None,
    provider: str = "auto",
    workers: int = 1,
    shard_bytes: int = 10**9,
    progress: Progress | None = None,
) -> Summary:
    """Prepare `photos` (files, folders, patterns, tar shards) into `folder`; photos that stand there already are skipped.

    `captioner` describes pictures for config.captions with BLIP2. `progress(bytes done, bytes, kept, rejected)` counts
    the input's bytes that this run has to look at; it may raise to stop, which loses nothing: the next run goes on.
    Unusable photos are never fatal, they stand in report.csv with the reason. Raises HyperLoRAError when there is
    nothing to read, the folder holds other photos or can't be written, a process dies, or no photo at all is usable.
    """
    if (BLIP2 in config.captions) != (captioner is not None):
        raise HyperLoRAError("Captions by BLIP-2 need BLIP-2: name its folder (--captions blip2 --blip2 FOLDER).")
    networks = find_networks(face_pack)
    entries = list_entries(photos, config.people_folders, Path(folder))
    told = {**flat(config), "recognition": networks[RECOGNITION].stem}
    with ShardWriter(folder, told, shard_bytes) as writer:
        left = done = 0

        def todo() -> Iterator[Source]:
            nonlocal left
            for source in read_entries(entries):
                if source.name in writer.done:
                    left -= source.weight
                else:
                    yield source

        left = sum(entry.size for entry in entries)
        with _examined(todo(), (face_pack, shared_provider(provider, workers), config), workers) as results:
            for batch in _batches(results, CAPTIONED if captioner else 1):
                captions = _captions([result for _, result in batch], captioner, config.caption)
                for (source, result), caption in zip(batch, captions, strict=True):
                    _write(writer, result, caption)
                    done += source.weight
                    if progress is not None:
                        kept = writer.verdicts[KEPT]
                        progress(done, left, kept, writer.verdicts.total() - kept)
        rejected = {reason: count for reason, count in writer.verdicts.most_common() if reason != KEPT}
        if not writer.verdicts[KEPT]:
            most = next(iter(rejected), "none")
            raise HyperLoRAError(
                f"None of the {writer.verdicts.total()} photos can be used, most often because: {most}. "
                f"{writer.folder / REPORT} tells it of each."
            )
        writer.finish()
        return Summary(writer.verdicts[KEPT], rejected)


class Examiner:
    """Looks at one photo after the other. Raises HyperLoRAError when the face pack can't be loaded."""

    def __init__(self, face_pack: str | Path, provider: str, config: PrepareConfig, alone: bool = True):
        self.faces, self.config = FaceAnalyzer.load(face_pack, provider), config
        if not alone:
            _use_one_thread(self.faces)

    def __call__(self, source: Source) -> Sample | Rejection:
        """What is kept of a photo, or why nothing is."""
        try:
            return self._sample(source)
        except Rejected as rejected:
            return Rejection(source.name, rejected.reason, rejected.detail)

    def _sample(self, source: Source) -> Sample:
        rules = self.config.rules
        photo = _read(source, rules)
        height, width = photo.shape[:2]
        caption = _caption_beside(source) if FILES in self.config.captions else None
        if caption is None and BLIP2 not in self.config.captions and not self.config.caption:
            raise Rejected("no caption", "there is none beside it: write one, or use --captions blip2, or --caption")
        detection = the_face(self.faces.detect(photo), width, height, rules)
        square = training_square(detection.box, width, height, rules)
        detail = sharpness(photo, detection.box)
        check_sharpness(detail, rules)
        try:
            face = self.faces.describe(photo, detection)
            pose = head_pose(face.landmarks)
            check_pose(pose, rules)
            crops = identity_picture(photo, face.landmarks), base_picture(photo, face.landmarks)
        except HyperLoRAError as error:
            raise Rejected("no landmarks", str(error)) from error
        corner, scale = np.array([square.x, square.y], np.float32), rules.stored / square.side
        box = ((face.box - np.tile(corner, 2)) * scale).clip(0, rules.stored)
        region = (square.x, square.y, square.x + square.side, square.y + square.side)
        # Pillow's reducing_gap would save little: the square is seldom much larger than what is stored
        picture = Image.fromarray(photo).resize((rules.stored, rules.stored), Image.Resampling.LANCZOS, box=region)
        identity, base = (_shrunk(Image.fromarray(crop)) for crop in crops)
        details = {
            "box": _rounded(box),
            "landmarks": _rounded((face.landmarks - corner) * scale),
            "face": round(face_side(face.box)),
            "score": round(face.score, 3),
            "yaw": round(pose.yaw, 1),
            "roll": round(pose.roll, 1),
            "sharpness": round(detail, 2),
            "photo": [width, height],
            "square": list(square),
        }
        encoded = (_jpeg(one, self.config.quality) for one in (picture, identity, base))
        return Sample(source.name, source.person, *encoded, face.embedding, box, caption, details)


def _read(source: Source, rules: PhotoRules) -> np.ndarray:
    if source.picture is None:
        raise Rejected("unreadable", source.problem)
    try:
        data = source.picture.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large or odd pictures
            with Image.open(io.BytesIO(data)) as image:
                check_resolution(*image.size, rules)  # before the work of decoding it
                return read_photo(image)
    except UnidentifiedImageError as error:
        kind = "a web page" if data.lstrip()[:1] == b"<" else "an empty file" if not data else "text or another format"
        raise Rejected("unreadable", f"not a picture that can be read here: {kind}") from error
    except (HyperLoRAError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise Rejected("unreadable", str(error)) from error


def _caption_beside(source: Source) -> str | None:
    try:
        return source.caption()
    except (OSError, ValueError) as error:
        raise Rejected("caption unreadable", f"{error}: save it as UTF-8") from error


def _shrunk(picture: Image.Image) -> Image.Image:
    scale = CROP / min(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(CROP, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _rounded(values: np.ndarray) -> list:
    return np.round(values.astype(np.float64), 1).tolist()


def _captions(results: Sequence[Sample | Rejection], captioner: Captioner | None, default: str) -> list[str]:
    """A caption for each result, "" where there is none."""
    captions = [result.caption or "" if isinstance(result, Sample) else "" for result in results]
    if captioner is not None:
        wanted = [i for i, result in enumerate(results) if isinstance(result, Sample) and not captions[i]]
        if wanted:
            described = captioner([Image.open(io.BytesIO(results[i].picture)) for i in wanted])
            for i, caption in zip(wanted, described, strict=True):
                captions[i] = caption
    return [caption or default for caption in captions]


def _write(writer: ShardWriter, result: Sample | Rejection, caption: str) -> None:
    if isinstance(result, Rejection):
        writer.reject(result)
    elif caption:
        writer.keep(result, caption)
    else:
        writer.reject(Rejection(result.source, "no caption", "BLIP-2 had nothing to say"))


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    for first in items:
        yield list(chain([first], islice(items, size - 1)))


@contextmanager
def _examined(
    sources: Iterator[Source], setup: tuple, workers: int
) -> Iterator[Iterator[tuple[Source, Sample | Rejection]]]:
    """The sources with what came of them, in their order; one worker is this very process."""
    if workers < 1:
        raise HyperLoRAError(f"{workers} processes prepare nothing: give --workers 1 or more.")
    if workers == 1:
        examine = Examiner(*setup)
        yield ((source, examine(source)) for source in sources)
        return
    # a fresh interpreter each: onnxruntime and CUDA don't survive a fork
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, setup)
    try:
        yield _in_order(pool, sources, AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, sources: Iterator[Source], ahead: int
) -> Iterator[tuple[Source, Sample | Rejection]]:
    waiting: deque = deque()
    try:
        for source in sources:
            waiting.append((source, pool.submit(_examine, source)))
            if len(waiting) >= ahead:
                yield waiting[0][0], waiting[0][1].result()
                waiting.popleft()
        while waiting:
            yield waiting[0][0], waiting[0][1].result()
            waiting.popleft()
    except BrokenProcessPool as error:
        names = ", ".join(source.name for source, _ in list(waiting)[:AHEAD])
        raise HyperLoRAError(
            f"A process ended while it had these photos in hand: {names}, ... Often memory ran out: run the same command "
            "again with fewer --workers; it goes on where it stopped."
        ) from error


_setup: tuple  # of a worker process


def _start_worker(*setup: object) -> None:
    global _setup
    _setup = setup
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the main process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose main process was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


@cache
def _examiner() -> Examiner:
    return Examiner(*_setup, alone=False)


def _examine(source: Source) -> Sample | Rejection:
    # loaded here and not when the process starts, so that what is wrong with the face pack reaches the user
    return _examiner()(source)


def _use_one_thread(faces: FaceAnalyzer) -> None:
    """One thread for each network and for cv2: by default each starts one per core, in every process."""
    options = packages.require("onnxruntime", "Finding faces").SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for model in faces.app.models.values():
        session = model.session
        model.session = type(session)(model.model_file, sess_options=options, providers=session.get_providers())
    packages.require("cv2", "Finding faces").setNumThreads(1)
