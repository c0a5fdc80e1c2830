"""Pictures side by side, with their names and scores, on one sheet."""

from comfy_api.latest import io, ui

from ..hyperlora_core import FaceAnalyzer, HyperLoRAError
from ..hyperlora_core.compare import SIDE, Column, column_labels, comparison, report
from ..hyperlora_core.photo import read_batch
from ..hyperlora_core.pictures import image_batch
from ..hyperlora_core.similarity import person_embedding, similarities
from . import host
from .types import CATEGORY, face_analysis_input

MORE_IMAGES = ("images_2", "images_3", "images_4", "images_5", "images_6")


class HyperLoRACompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRACompare",
            display_name="Compare Pictures",
            category=CATEGORY,
            description="Pictures side by side under their labels, with how like the person each is. "
            "Save Image keeps the sheet with the workflow in it.",
            search_aliases=["image grid", "xy plot", "contact sheet", "side by side", "compare likeness", "labels"],
            inputs=[
                io.Image.Input("images_1", tooltip="The first column: one picture, or a batch for several rows."),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="",
                    tooltip="A line for each column, in the order of the inputs. Empty: A, B, C...",
                ),
                io.Int.Input(
                    "picture_size",
                    default=SIDE,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Pixels of each picture's longer side on the sheet.",
                ),
                *(
                    io.Image.Input(
                        name, optional=True, tooltip="Another column; its pictures stand beside the others'."
                    )
                    for name in MORE_IMAGES
                ),
                face_analysis_input("For the scores, together with reference.", optional=True),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Photos of the person, to score every picture by; the largest face of each.",
                ),
            ],
            outputs=[
                io.Image.Output("sheet", tooltip="The sheet, for Save Image."),
                io.String.Output("report", tooltip="The scores in words; empty without a reference."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        images_1,
        labels: str,
        picture_size: int,
        images_2=None,
        images_3=None,
        images_4=None,
        images_5=None,
        images_6=None,
        face_analysis=None,
        reference=None,
    ) -> io.NodeOutput:
        if (face_analysis is None) != (reference is None):
            missing, given = ("reference", "face_analysis") if reference is None else ("face_analysis", "reference")
            raise HyperLoRAError(f"For scores connect {missing} too, or disconnect {given} to compare without.")
        batches = [b for b in (images_1, images_2, images_3, images_4, images_5, images_6) if b is not None]
        names = column_labels(labels, len(batches))
        pictures = [read_batch(batch, f"{name}, picture") for name, batch in zip(names, batches, strict=True)]
        scores = score(face_analysis, reference, pictures)
        columns = [Column(*column) for column in zip(names, pictures, scores, strict=True)]
        sheet = image_batch([comparison(columns, picture_size)])
        return io.NodeOutput(sheet, report(columns), ui=ui.PreviewImage(sheet, cls=cls))


def score(face_analysis, reference, columns: list[list]) -> list:
    """Each column's similarities, or None for each without a reference."""
    if reference is None:
        return [None] * len(columns)
    faces = FaceAnalyzer(face_analysis)
    flat = [picture for column in columns for picture in column]
    found = iter(similarities(faces, person_embedding(faces, list(reference)), flat, host.progress(len(flat))))
    return [[next(found) for _ in column] for column in columns]
