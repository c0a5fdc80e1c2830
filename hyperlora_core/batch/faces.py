"""Stage 1: a photo -> its face, described, and the pictures that the encoders look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..encode import EncodeOptions
from ..errors import HyperLoRAError
from ..face.analyzer import FaceAnalyzer
from ..packages import require
from ..photo import read_photo
from ..vision import clip_crop


@dataclass(frozen=True)
class Wanted:
    """What a checkpoint and its CLIP tower want of a photo."""

    options: EncodeOptions
    size: int = 0  # pixels along a side of CLIP's input
    identity: bool = True  # the ID branch reads CLIP tokens
    base: bool = True  # there is a base branch


class Look(NamedTuple):
    """What a photo shows. The pictures have CLIP's size already, which keeps the way between processes short."""

    identity: np.ndarray | None  # uint8 [size, size, 3]
    base: np.ndarray | None  # uint8 [size, size, 3]
    embedding: np.ndarray  # float32 [512]


class FaceReader:
    """Looks at one photo after the other."""

    def __init__(self, faces: FaceAnalyzer, wanted: Wanted):
        self.faces, self.wanted = faces, wanted

    def __call__(self, path: str) -> Look | str:
        """What the photo shows, or a sentence about why it can't be used."""
        options = self.wanted.options
        try:
            photo = read_photo(path)
            face = self.faces.face(photo, options.which, path)
            identity = base = None
            if self.wanted.identity:
                identity = clip_crop(options.identity_picture(photo, face), self.wanted.size)
            if self.wanted.base:
                base = clip_crop(options.base_picture(photo, face), self.wanted.size)
        except HyperLoRAError as error:
            sentence = str(error)
            return sentence if path in sentence else f"{path}: {sentence}"
        except (
            Exception
        ) as error:  # OpenCV's, onnxruntime's: one photo's matter, which must not end the others' process
            if "memory" in str(error).lower():
                raise  # the machine's matter
            what = str(error).strip().splitlines() or [""]
            return f"{path} can't be looked at ({type(error).__name__}: {what[-1]}): save it anew, or leave it out."
        return Look(identity, base, face.embedding)


def open_reader(face_pack: str | Path, provider: str, wanted: Wanted) -> FaceReader:
    """A FaceReader that keeps to one core, for one of several processes. Raises HyperLoRAError, as FaceAnalyzer.load."""
    faces = FaceAnalyzer.load(face_pack, provider)
    options = require("onnxruntime", "Finding faces").SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for model in faces.app.models.values():
        session = model.session
        model.session = type(session)(model.model_file, sess_options=options, providers=session.get_providers())
    require("cv2", "Finding faces").setNumThreads(1)
    return FaceReader(faces, wanted)
