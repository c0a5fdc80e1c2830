"""Faces: the pack of networks that finds them, and a look at what it found."""

import numpy as np
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..hyperlora_core import FaceAnalyzer, HyperLoRAError, NoFaceError
from ..hyperlora_core.face.analyzer import Detection, Face
from ..hyperlora_core.face.choice import CHOICES
from ..hyperlora_core.face.close_up import around, soften
from ..hyperlora_core.face.draw import annotate, face_mask
from ..hyperlora_core.face.providers import PROVIDERS
from ..hyperlora_core.photo import read_batch
from ..hyperlora_core.pictures import image_batch, mask_batch
from . import folders, host
from .types import CATEGORY, FaceAnalysis, Faces, InsightFace, face_analysis_input

ALL = "all"
BY_INDEX = "index"
ERROR, EMPTY = "error", "empty mask"  # what a picture without a face gives


def face_inputs(*more: str) -> list:
    """The two widgets that choose one of several faces."""
    return [
        io.Combo.Input(
            "face",
            options=[*CHOICES, BY_INDEX, *more],
            default=CHOICES[0],
            tooltip="Which face, if the photo shows several. index: by face_index, counted from the left.",
        ),
        io.Int.Input(
            "face_index",
            default=0,
            min=0,
            max=99,
            optional=True,
            tooltip="0 is the leftmost face; for face = index.",
        ),
    ]


def chosen_face(face: str, face_index: int) -> str | int:
    return face_index if face == BY_INDEX else face


def chosen_numbers(
    analyzer: FaceAnalyzer, photo: np.ndarray, found: list[Detection], which: str | int, name: str
) -> list[int]:
    """Which of the picture's faces `which` means, at least one. Raises NoFaceError where there is none."""
    one = analyzer.choose(photo, found, CHOICES[0] if which == ALL else which, name)
    return [number for number, detection in enumerate(found) if which == ALL or detection is one]


class HyperLoRALoadFaceAnalysis(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        packs = folders.face_pack_names()
        return io.Schema(
            node_id="HyperLoRALoadFaceAnalysis",
            display_name="Load Face Analysis",
            category=CATEGORY,
            description="Loads a face pack (detection, landmarks, recognition). Works with InstantID, IP-Adapter and PuLID nodes too.",
            search_aliases=["insightface", "antelopev2", "face analysis", "face detection"],
            inputs=[
                io.Combo.Input(
                    "face_pack",
                    options=packs,
                    default=packs[0],
                    tooltip="A folder in models/insightface/models. The published HyperLoRA checkpoints need antelopev2.",
                ),
                io.Combo.Input(
                    "provider",
                    options=[folders.AUTO, *PROVIDERS],
                    default=folders.AUTO,
                    advanced=True,
                    tooltip="Where onnxruntime computes. auto: the fastest one that is installed.",
                ),
            ],
            outputs=[
                FaceAnalysis.Output(
                    "face_analysis", tooltip="For Detect Faces, Encode Identity, and InstantID's and PuLID's nodes."
                ),
                InsightFace.Output("insightface", tooltip="The same, for IP-Adapter FaceID's node."),
            ],
        )

    @classmethod
    def execute(cls, face_pack: str, provider: str) -> io.NodeOutput:
        app = FaceAnalyzer.load(folders.face_pack_path(face_pack), provider).app
        return io.NodeOutput(app, app)


class HyperLoRADetectFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRADetectFaces",
            display_name="Detect Faces",
            category=CATEGORY,
            description="Finds faces and shows them: boxes with their numbers from the left, a mask of the faces, and a "
            "close-up to paint again.",
            search_aliases=["face detector", "face mask", "face box", "count faces", "face crop", "face detailer"],
            inputs=[
                face_analysis_input(),
                io.Image.Input("image", tooltip="One picture or a batch."),
                *face_inputs(ALL),
                io.Combo.Input(
                    "without_face",
                    options=[ERROR, EMPTY],
                    default=ERROR,
                    optional=True,
                    advanced=True,
                    tooltip="What a picture without a face gives. error: the run stops and says which one. empty mask: a black "
                    "mask, the picture's middle as close-up, and nothing is added to the count.",
                ),
            ],
            outputs=[
                Faces.Output("faces", tooltip="The chosen faces of each picture."),
                io.Image.Output(
                    "annotated",
                    tooltip="The pictures with the number of every face; the chosen ones are yellow and outlined.",
                ),
                io.Mask.Output("mask", tooltip="White inside the chosen faces' outlines."),
                io.Int.Output("count", tooltip="How many faces were chosen, over all pictures."),
                io.Image.Output("close_up", tooltip="A square around the chosen faces of the first picture."),
                io.Mask.Output("close_up_mask", tooltip="White on the close-up's faces, with a soft edge around them."),
                io.Int.Output("x", tooltip="Left edge of the close-up in the first picture."),
                io.Int.Output("y", tooltip="Upper edge of the close-up in the first picture."),
                io.Int.Output("side", tooltip="Width and height of the close-up."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, face_analysis, image, face: str, face_index: int = 0, without_face: str = ERROR) -> io.NodeOutput:
        analyzer = FaceAnalyzer(face_analysis)
        photos = read_batch(image, "Picture")
        step = host.progress(len(photos))
        faces, annotated, masks = [], [], []
        for number, photo in enumerate(photos, start=1):
            found = analyzer.detect(photo)
            try:
                chosen = chosen_numbers(analyzer, photo, found, chosen_face(face, face_index), f"Picture {number}")
            except NoFaceError as error:
                if without_face == ERROR:
                    raise NoFaceError(f"{error} Or set without_face to {EMPTY!r}.") from error
                chosen = []
            faces.append(analyzer.faces(photo, [found[i] for i in chosen]))
            annotated.append(annotate(photo, [face.box for face in found], dict(zip(chosen, faces[-1], strict=True))))
            masks.append(face_mask(photo, faces[-1]))
            step(number, len(image))
        try:
            close_up = close_up_of(photos[0], faces[0], masks[0])
        except HyperLoRAError as error:
            if cls.close_up_wanted():
                raise
            close_up = [ExecutionBlocker(str(error))] * 5  # for who connects one later: what was found is kept
        return io.NodeOutput(faces, image_batch(annotated), mask_batch(masks), sum(map(len, faces)), *close_up)

    @classmethod
    def close_up_wanted(cls) -> bool:
        """Whether a node is connected to one of the close-up's outputs; in graphs that can't be seen, yes."""
        graph, here = cls.hidden.prompt or {}, cls.hidden.unique_id
        first = [output.id for output in cls.define_schema().outputs].index("close_up")
        links = (value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list))
        return here not in graph or any(link[0] == here and link[1] >= first for link in links if len(link) == 2)


def close_up_of(photo: np.ndarray, faces: list[Face], mask: np.ndarray) -> list:
    """Picture, mask, x, y, side. Raises HyperLoRAError for faces that no square in the photo holds."""
    square = around(faces, photo.shape[:2])
    return [image_batch([square.cut(photo)]), mask_batch([soften(square.cut(mask))]), *square]
