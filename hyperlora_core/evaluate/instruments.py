"""What is read from pictures: whose face it is (by a network that steered nothing), what else is in it, CLIP's view."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import HyperLoRAError
from ..face.analyzer import FaceAnalyzer
from ..packages import require
from ..vision import VisionEncoder
from .attributes import AttributeReader, Looks

Progress = Callable[[int, int], None]
CLIP_BATCH = 8
# the demo's instruments, folders in models/demo
FACE_MEASURE, ATTRIBUTE_MEASURE = "face_measure", "attribute_measure"


class MeasuringNetwork:
    """A recognition network apart from the one that HyperLoRA reads, in a form that InsightFace loads."""

    def __init__(self, folder: str | Path, analyzer: FaceAnalyzer):
        """Open the .onnx file of `folder`; faces are found by `analyzer`. Raises HyperLoRAError when there is none."""
        zoo = require("insightface.model_zoo", "Measuring likeness")
        native = require("onnxruntime.capi.onnxruntime_pybind11_state", "Measuring likeness")
        file = next(iter(sorted(Path(folder).glob("*.onnx"))), None)
        if file is None:
            raise HyperLoRAError(f"{folder} holds no .onnx file: give a folder with a face recognition network.")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some versions of insightface print
                self._network = zoo.get_model(str(file), providers=["CPUExecutionProvider"])
        except (native.InvalidProtobuf, native.InvalidGraph, native.Fail) as error:
            raise HyperLoRAError(f"{file} is damaged: download it or train it again.") from error
        self._face = require("insightface.app.common", "Measuring likeness").Face
        self.analyzer = analyzer

    def embed(self, picture: np.ndarray) -> np.ndarray | None:
        """The largest face of a picture uint8 [h, w, 3] as an embedding [c] of length 1; None where none is found."""
        found = self.analyzer.detect(picture)
        if not found:
            return None
        face = self.analyzer.choose(picture, found, "largest", "the picture")
        record = self._face(bbox=face.box, kps=face.keypoints, det_score=face.score)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # insightface's own, of scikit-image, at every face
            embedding = self._network.get(np.ascontiguousarray(picture[..., ::-1]), record)
        embedding = np.asarray(embedding, np.float64).ravel()
        return embedding / np.linalg.norm(embedding)

    def embed_all(self, pictures: Sequence[np.ndarray], progress: Progress | None = None) -> np.ndarray:
        """Embeddings [n, c]. A picture without a found face has zeros: like nobody, in every cosine."""
        rows = []
        for number, picture in enumerate(pictures, start=1):
            rows.append(self.embed(picture))
            if progress is not None:
                progress(number, len(pictures))
        width = next((len(row) for row in rows if row is not None), 1)
        return np.stack([np.zeros(width) if row is None else row for row in rows])


class Readings(NamedTuple):
    """What was read from n pictures."""

    embeddings: np.ndarray  # [n, c], zeros where no face was found
    looks: list[Looks]
    clip: np.ndarray  # [n, c'], length 1

    @property
    def found(self) -> np.ndarray:
        """Whether a face was found: bool [n]."""
        return self.embeddings.any(1)


class Instruments(NamedTuple):
    """Everything that reads pictures."""

    faces: MeasuringNetwork
    attributes: AttributeReader
    vision: VisionEncoder

    def read(self, pictures: Sequence[np.ndarray], progress: Progress | None = None) -> Readings:
        """Read uint8 pictures [h, w, 3]; `progress(done, total)` may raise to stop."""
        embeddings = self.faces.embed_all(pictures, progress)
        return Readings(embeddings, self.attributes.read(pictures), self._clip(pictures))

    def _clip(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The mean of a picture's patch tokens, at length 1."""
        parts = [
            self.vision.encode_pictures(pictures[start : start + CLIP_BATCH])[:, 1:].mean(1).float().cpu().numpy()
            for start in range(0, len(pictures), CLIP_BATCH)
        ]
        pooled = np.concatenate(parts)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
