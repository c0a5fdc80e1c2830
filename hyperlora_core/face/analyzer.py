"""Faces in a photo: where they are, their 106 landmarks and their embedding, through InsightFace.

One detection and two small networks per face; the pack's other networks (3-d landmarks, age) are never loaded.
"""

import contextlib
import os
import sys
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import HyperLoRAError, NoFaceError
from ..packages import require
from .choice import choose_face, left_to_right
from .pack import DETECTION, LANDMARKS, NETWORKS, RECOGNITION, REMEDY, TASKS, find_networks
from .providers import check_session, choose_providers

DETECTION_SIZES = (640, 512, 384, 256)  # smaller ones find faces that are too large for the first
EMBEDDING_SIZE = 512
SPINNING = "session.intra_op.allow_spinning"


class Detection(NamedTuple):
    """A face found: pixels of the photo, possibly beyond its edges."""

    box: np.ndarray  # [4] x0 y0 x1 y1
    score: float  # 0..1
    keypoints: np.ndarray  # [5, 2] eyes, nose, corners of the mouth


class Face(NamedTuple):
    """A face described: a detection, its landmarks in pixels of the photo, and who it looks like."""

    box: np.ndarray
    score: float
    keypoints: np.ndarray
    landmarks: np.ndarray  # float32 [106, 2]
    embedding: np.ndarray  # float32 [512], length 1


class FaceAnalyzer:
    """Finds and describes faces with the networks of an insightface `FaceAnalysis`: loaded here, or a peer pack's.

    `app` stays usable by others: nothing in it is changed.
    """

    def __init__(self, app: Any):
        """Raises HyperLoRAError when `app` isn't a FaceAnalysis, or lacks one of the three networks."""
        models = getattr(app, "models", None)
        if not isinstance(models, dict):
            raise HyperLoRAError(
                f"A {type(app).__name__} was given as face analysis, which must be an insightface FaceAnalysis: "
                "use our face analysis loader, or one that gives such an object (InstantID, PuLID)."
            )
        missing = [NETWORKS[task] for task in TASKS if task not in models]
        if missing:
            raise HyperLoRAError(
                f"The face analysis was loaded without {' and '.join(missing)}: use our face analysis loader. {REMEDY}"
            )
        if not models[DETECTION].use_kps:
            raise HyperLoRAError(
                "The face detector gives no key points, without which faces can't be aligned: use one that does "
                f"(scrfd_10g_bnkps.onnx, det_10g.onnx). {REMEDY}"
            )
        self.app = app

    @classmethod
    def load(cls, folder: str | Path, provider: str = "auto") -> "FaceAnalyzer":
        """Load detector, landmarks and recognition from a face pack's folder, e.g. `.../insightface/models/antelopev2`.

        `provider`: see `choose_providers`. Raises HyperLoRAError when files are missing or damaged or the provider
        isn't there, MissingPackageError without insightface.
        """
        networks = find_networks(folder)
        analysis = require("insightface.app", "Finding faces").FaceAnalysis
        providers = choose_providers(provider)
        options: dict[str, Any] = {"providers": providers, "allowed_modules": list(TASKS)}
        if providers[0] != "CoreMLExecutionProvider":
            # insightface 2 would build another copy of the detector for each size, which only CoreML gains from
            options["static_shape_sessions"] = False
            options["sess_options"] = _without_spinning()
        view = _linked(networks)
        try:
            # insightface 0.7 prints what it finds, which would stand in the middle of a command's output
            with contextlib.redirect_stdout(sys.stderr):
                app = analysis(name=str(view.name if view else networks[DETECTION].parent.resolve()), **options)
        except _load_errors() as error:
            raise HyperLoRAError(
                f"The face pack {networks[DETECTION].parent} can't be loaded ({str(error).strip()}). "
                f"One of its files is damaged. {REMEDY}"
            ) from error
        if view:
            # insightface may open the detector's file again later
            weakref.finalize(app, view.cleanup)
        for model in app.models.values():
            check_session(model.session, providers, required=provider.lower() != "auto")
        with contextlib.redirect_stdout(sys.stderr):
            app.prepare(ctx_id=0, det_size=(DETECTION_SIZES[0],) * 2)  # ctx_id below 0 would move it all to the CPU
        return cls(app)

    @property
    def recognition_name(self) -> str:
        """The recognition network's file name without ending: glintr100 (antelopev2, HyperLoRA's own), w600k_r50..."""
        return Path(self.app.models[RECOGNITION].model_file).stem

    def detect(self, photo: np.ndarray, sizes: Sequence[int] = DETECTION_SIZES) -> list[Detection]:
        """The faces in a photo uint8 [h, w, 3] RGB, from left to right; empty when there are none.

        The detector's input `sizes` (pixels, multiples of 32) are tried in turn until faces appear; then the photo with
        a border, for faces that fill the frame.
        """
        return self._detect(_bgr(photo), sizes)

    def describe(self, photo: np.ndarray, detection: Detection) -> Face:
        """Landmarks and embedding of one detected face. Raises HyperLoRAError when they come out unusable."""
        return self._describe(_bgr(photo), [detection])[0]

    def face(self, photo: np.ndarray, which: str | int = "largest", name: str = "the photo") -> Face:
        """The face that `which` means (see `choose_face`). `name` is what errors call the photo.

        Raises NoFaceError when there is none, HyperLoRAError when `which` doesn't exist.
        """
        return self.describe(photo, self.choose(photo, self.detect(photo), which, name))

    def choose(self, photo: np.ndarray, found: Sequence[Detection], which: str | int, name: str) -> Detection:
        """One of the photo's detections; raises as `face`."""
        height, width = photo.shape[:2]
        if not found:
            raise NoFaceError(
                f"No face was found in {name} ({width} x {height}): use a photo in which the face is upright, sharp, "
                "not covered, and at least about 60 pixels wide."
            )
        return found[choose_face([detection.box for detection in found], which, (width, height), name)]

    def faces(self, photo: np.ndarray, detections: Sequence[Detection] | None = None) -> list[Face]:
        """These faces of a photo, by default all of them, from left to right."""
        bgr = _bgr(photo)
        return self._describe(bgr, self._detect(bgr, DETECTION_SIZES) if detections is None else detections)

    def _detect(self, bgr: np.ndarray, wanted: Sequence[int]) -> list[Detection]:
        height, width = bgr.shape[:2]
        # a strip is scaled to nothing at the small ones
        sizes = [size for size in self._sizes(wanted) if min(size) * min(height, width) >= max(height, width)]
        for size in sizes:
            if found := self._detect_at(bgr, size):
                return found
        border = max(height, width) // 2
        padded = np.pad(bgr, ((border, border), (border, border), (0, 0)))
        for size in sizes:
            if found := self._detect_at(padded, size):
                return [Detection(d.box - border, d.score, d.keypoints - border) for d in found]
        return []

    def _detect_at(self, bgr: np.ndarray, size: tuple[int, int]) -> list[Detection]:
        boxes, keypoints = self.app.models[DETECTION].detect(bgr, input_size=size)  # (n, 5), (n, 5, 2)
        return [
            Detection(boxes[i, :4], float(boxes[i, 4]), keypoints[i])
            for i in left_to_right(boxes[:, :4])
            if np.isfinite(boxes[i]).all() and (boxes[i, 2:4] - boxes[i, :2] >= 1).all()
        ]

    def _sizes(self, wanted: Sequence[int]) -> Sequence[tuple[int, int]]:
        """Width and height of the detector's input, to be tried in turn; a network with a fixed input has only one."""
        height, width = self.app.models[DETECTION].input_shape[2:]
        if isinstance(height, int) and isinstance(width, int):
            return [(width, height)]
        return [(size, size) for size in wanted]

    def _describe(self, bgr: np.ndarray, detections: Sequence[Detection]) -> list[Face]:
        if not detections:
            return []
        record = require("insightface.app.common", "Describing faces").Face
        align = require("insightface.utils.face_align", "Describing faces").norm_crop
        network, side = self.app.models[LANDMARKS], self.app.models[RECOGNITION].input_size[0]
        landmarks = [network.get(bgr, record(bbox=d.box, kps=d.keypoints, det_score=d.score)) for d in detections]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # insightface's own, of scikit-image, at every face
            aligned = [align(bgr, landmark=d.keypoints, image_size=side) for d in detections]
        embeddings = self._embed(aligned)  # (n, 512)
        if embeddings.shape[1:] != (EMBEDDING_SIZE,):
            raise HyperLoRAError(
                f"The recognition network {self.recognition_name} gives {embeddings[0].size} numbers per face instead of "
                f"{EMBEDDING_SIZE}. {REMEDY}"
            )
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.all() and np.isfinite(landmarks).all()):
            raise HyperLoRAError(
                f"The face networks ({self.recognition_name} and others) gave no usable numbers for a face: "
                'load the face pack with the provider "cpu", or download it again.'
            )
        described = zip(detections, landmarks, embeddings / lengths, strict=True)
        return [Face(*detection, points.astype(np.float32), embedding) for detection, points, embedding in described]

    def _embed(self, aligned: list[np.ndarray]) -> np.ndarray:
        """Aligned faces uint8 [side, side, 3] BGR -> float32 [n, c]: in one pass where the network says that it takes and gives
        several, as not all published ones do."""
        network = self.app.models[RECOGNITION]
        alone = isinstance(network.input_shape[0], int) or isinstance(network.output_shape[0], int)
        parts = [[face] for face in aligned] if alone else [aligned]
        answers = [np.asarray(network.get_feat(part), np.float32) for part in parts]
        return np.concatenate(answers).reshape(len(aligned), -1)


def _without_spinning() -> Any:
    """onnxruntime's SessionOptions whose threads sleep when they have nothing to do.

    By default they go on looking for work after each call, and so take the processor from the next network, which runs at once.
    insightface 0.7 passes no such options on.
    """
    options = require("onnxruntime", "Finding faces").SessionOptions()
    options.add_session_config_entry(SPINNING, "0")
    return options


def _bgr(photo: np.ndarray) -> np.ndarray:
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise HyperLoRAError(
            f"Faces are looked for in a uint8 [h, w, 3] picture, not {photo.dtype} {list(photo.shape)}: "
            "read it with read_photo."
        )
    return np.ascontiguousarray(photo[..., ::-1])


def _linked(networks: dict[str, Path]) -> tempfile.TemporaryDirectory | None:
    """A folder of links to the three files: insightface builds every network in a folder before it drops any.

    None where the system allows no links (Windows, from one drive to another); the whole folder is loaded then.
    """
    view = tempfile.TemporaryDirectory(prefix="hyperlora-faces-")
    for file in networks.values():
        link = Path(view.name) / file.name
        try:
            if os.name == "nt":
                os.link(file.resolve(), link)  # symbolic links need a privilege there
            else:
                link.symlink_to(file.resolve())
        except OSError:
            view.cleanup()
            return None
    return view


def _load_errors() -> tuple[type[Exception], ...]:
    """What a damaged file raises in onnxruntime and onnx; their exceptions share no base but Exception."""
    native = require("onnxruntime.capi.onnxruntime_pybind11_state", "Finding faces")
    message = require("google.protobuf.message", "Reading ONNX files")
    names = ("Fail", "InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NotImplemented", "RuntimeException")
    return (message.DecodeError, *(getattr(native, name) for name in names))
