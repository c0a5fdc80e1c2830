"""What is read from pictures: whose face it is (by a network that steered nothing), what else is in it, CLIP's view."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import HyperLoRAError
from ..face.analyzer import Detection, FaceAnalyzer
from ..face.close_up import around
from ..face.pack import RECOGNITION
from ..packages import require
from .attributes import AttributeReader, Looks
from .clip import ClipView, TokenView

Progress = Callable[[int, int], None]
BATCH = 8  # pictures that are read at once
FACE_FACTOR = 1.4  # side of the face's picture for CLIP, in lengths of the detected box: chin and hair line are in it
PURPOSE = "Measuring similarity"
TORCH = (".pt", ".pts", ".torchscript", ".ts")
# the demo's instruments, folders in models/demo
FACE_MEASURE, ATTRIBUTE_MEASURE = "face_measure", "attribute_measure"


class Seen(NamedTuple):
    """The largest face of a picture."""

    embedding: np.ndarray  # [c], length 1
    close_up: np.ndarray  # uint8 [s, s, 3]


class MeasuringNetwork:
    """Face recognition, wanted apart from the one that HyperLoRA reads."""

    def __init__(self, source: str | Path | None, analyzer: FaceAnalyzer):
        """Open an .onnx file that InsightFace understands, a TorchScript file, or the folder of an .onnx file; None is
        the recognition of `analyzer`, which finds the faces in any case. Networks take aligned faces [n, 3, 112, 112] RGB
        in -1..1. Raises HyperLoRAError.
        """
        self.analyzer, self.width = analyzer, 1
        self._face = require("insightface.app.common", PURPOSE).Face
        if source is None:
            self._network, self.name = analyzer.app.models[RECOGNITION], analyzer.recognition_name
            self.file = Path(self._network.model_file)
        else:
            file = Path(source)
            if file.is_dir():
                file = next(iter(sorted(file.glob("*.onnx"))), file)
            self._network, self.name = _TorchNetwork(file) if file.suffix in TORCH else _onnx(file), file.stem
            self.file = file

    @property
    def independent(self) -> bool:
        """Whether HyperLoRA reads another network than this."""
        return self.name != self.analyzer.recognition_name

    def look(self, picture: np.ndarray) -> Seen | None:
        """The largest face of a picture uint8 [h, w, 3]; None where none is found."""
        found = self.analyzer.detect(picture)
        if not found:
            return None
        face = self.analyzer.choose(picture, found, "largest", "the picture")
        close_up = around([face], picture.shape[:2], FACE_FACTOR).cut(picture)
        return Seen(self._embed(picture, face), close_up)

    def embed(self, picture: np.ndarray) -> np.ndarray | None:
        """The largest face as an embedding [c] of length 1; None where none is found."""
        seen = self.look(picture)
        return None if seen is None else seen.embedding

    def embed_all(self, pictures: Sequence[np.ndarray], progress: Progress | None = None) -> np.ndarray:
        """Embeddings [n, c]. A picture without a found face has zeros: like nobody, in every cosine."""
        rows = []
        for number, picture in enumerate(pictures, start=1):
            rows.append(self.embed(picture))
            if progress is not None:
                progress(number, len(pictures))
        return self.table(rows)

    def table(self, rows: Sequence[np.ndarray | None]) -> np.ndarray:
        """Embeddings [n, c] of rows, zeros for None."""
        return np.stack([np.zeros(self.width) if row is None else row for row in rows])

    def _embed(self, picture: np.ndarray, face: Detection) -> np.ndarray:
        record = self._face(bbox=face.box, kps=face.keypoints, det_score=face.score)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # insightface's own, of scikit-image, at every face
            embedding = self._network.get(np.ascontiguousarray(picture[..., ::-1]), record)
        embedding = np.asarray(embedding, np.float64).ravel()
        self.width = len(embedding)
        return embedding / np.linalg.norm(embedding)


def _onnx(file: Path) -> Any:
    zoo = require("insightface.model_zoo", PURPOSE)
    native = require("onnxruntime.capi.onnxruntime_pybind11_state", PURPOSE)
    if file.suffix != ".onnx" or not file.is_file():
        raise HyperLoRAError(f"{file} holds no .onnx file: give a face recognition network, in ONNX or as TorchScript.")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some versions of insightface print
            network = zoo.get_model(str(file), providers=["CPUExecutionProvider"])
    except (AssertionError, IndexError, TypeError):  # insightface's answers to other inputs and outputs
        network = None
    except (native.InvalidProtobuf, native.InvalidGraph, native.Fail) as error:
        raise HyperLoRAError(f"{file} is damaged: download it or train it again.") from error
    # insightface takes whatever it doesn't know for recognition
    if getattr(network, "taskname", None) != RECOGNITION or not _takes_faces(network):
        raise HyperLoRAError(
            f"{file} isn't a face recognition network: it must take faces [n, 3, 112, 112] and give one tensor [n, c]."
        )
    return network


def _takes_faces(network: Any) -> bool:
    side = _TorchNetwork.SIZE
    alone = len(network.session.get_inputs()) == 1
    return alone and list(network.input_shape[1:]) == [3, side, side] and len(network.output_shape) == 2


class _TorchNetwork:
    """A TorchScript file in the form of InsightFace's networks."""

    SIZE = 112  # px, of an aligned face

    def __init__(self, file: Path):
        self._align = require("insightface.utils.face_align", PURPOSE).norm_crop
        try:
            self._network = torch.jit.load(str(file), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise HyperLoRAError(
                f"{file} isn't a TorchScript file, or is damaged: bare weights (.pth) say nothing of their network, so "
                "export it to ONNX, or write it with torch.jit.trace(...).save(...)."
            ) from error

    @torch.no_grad()
    def get(self, bgr: np.ndarray, face: Any) -> np.ndarray:
        aligned = self._align(bgr, landmark=face.kps, image_size=self.SIZE)[..., ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(aligned, np.float32) / 127.5 - 1)  # (112, 112, 3)
        return self._network(pixels.movedim(-1, 0)[None]).numpy()


class Readings(NamedTuple):
    """What was read from n pictures."""

    embeddings: np.ndarray  # [n, c], zeros where no face was found
    looks: Sequence[Looks | None]  # None: nothing reads them
    clip: np.ndarray  # [n, c'], length 1
    faces: np.ndarray  # [n, c'], CLIP's view of the face alone, length 1; zeros where no face was found
    sharpness: np.ndarray  # [n]

    @property
    def found(self) -> np.ndarray:
        """Whether a face was found: bool [n]."""
        return self.embeddings.any(1)

    def take(self, rows: Sequence[int]) -> "Readings":
        """These rows, each as often as it is named."""
        looks = [self.looks[row] for row in rows]
        return Readings(self.embeddings[rows], looks, self.clip[rows], self.faces[rows], self.sharpness[rows])


class Instruments(NamedTuple):
    """Everything that reads pictures."""

    faces: MeasuringNetwork
    attributes: AttributeReader | None  # knows the drawn world only
    view: ClipView | TokenView

    def read(self, pictures: Iterable[np.ndarray], total: int, progress: Progress | None = None) -> Readings:
        """Read `total` uint8 pictures [h, w, 3], few at a time; `progress(done, total)` may raise to stop."""
        waiting, embeddings, looks, clip, faces, sharp = iter(pictures), [], [], [], [], []
        while part := list(islice(waiting, BATCH)):
            seen = [self.faces.look(picture) for picture in part]
            embeddings += [None if face is None else face.embedding for face in seen]
            looks += [None] * len(part) if self.attributes is None else self.attributes.read(part)
            clip.append(self.view.pictures(part))
            faces.append(self._faces(seen, clip[-1]))
            sharp += [sharpness(picture) for picture in part]
            if progress is not None:
                progress(len(embeddings), total)
        table = self.faces.table(embeddings)
        return Readings(table, looks, np.concatenate(clip), np.concatenate(faces), np.array(sharp))

    def _faces(self, seen: Sequence[Seen | None], like: np.ndarray) -> np.ndarray:
        """CLIP's view of each face, in the form of `like` [n, c]; zeros where there is none."""
        views, there = np.zeros_like(like), [i for i, face in enumerate(seen) if face is not None]
        if there:
            views[there] = self.view.pictures([seen[i].close_up for i in there])
        return views

    @property
    def notes(self) -> list[str]:
        """Who measures, for the report."""
        faces = f"Face recognition: {self.faces.name}."
        if not self.faces.independent:
            faces += (
                " Warning: this is the network that HyperLoRA reads photos with, so ID Sim flatters it, and every method "
                "that reads the same. Give another with --recognition."
            )
        return [faces, f"CLIP: {self.view.name}."]


def sharpness(picture: np.ndarray) -> float:
    """Variance of the Laplacian of the grey picture uint8 [h, w, 3]: detail, and noise. It depends on the size."""
    vision = require("cv2", "Measuring sharpness")
    return float(vision.Laplacian(vision.cvtColor(picture, vision.COLOR_RGB2GRAY), vision.CV_64F).var())
