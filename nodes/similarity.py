"""How like the person pictures are, and a gate that lets only the like ones through."""

import math

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..hyperlora_core import FaceAnalyzer, HyperLoRAError
from ..hyperlora_core.photo import read_batch
from ..hyperlora_core.similarity import Similarity, mean_similarity, person_embedding, similarities
from . import host
from .types import CATEGORY, face_analysis_input

OFF, REMOVE, STOP, ERROR = GATES = ("off", "remove", "stop", "error")


class HyperLoRASimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRASimilarity",
            display_name="Identity Similarity",
            category=CATEGORY,
            description="How like a person pictures are, from -1 to 1. Its gate stops what isn't like enough.",
            search_aliases=[
                "face similarity",
                "face distance",
                "likeness",
                "id score",
                "face embedding distance",
                "gate",
            ],
            inputs=[
                face_analysis_input(),
                io.Image.Input("reference", tooltip="Photos of the person, one or a batch; the largest face of each."),
                io.Image.Input("images", tooltip="The pictures to judge; in each the face most like the person."),
                io.Combo.Input(
                    "gate",
                    options=list(GATES),
                    default=OFF,
                    tooltip="Below the threshold. remove: pass only the pictures at or above it. stop: if the mean is below, "
                    "nothing behind images runs, and the queue goes on. error: likewise, with an error.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.4,
                    min=-1,
                    max=1,
                    step=0.01,
                    tooltip="For the gate. Networks differ: see in the report what your pictures reach.",
                ),
            ],
            outputs=[
                io.Float.Output("similarity", tooltip="The mean over all pictures; one without a face counts 0."),
                io.String.Output("report", tooltip="A line for each picture, the mean, and what the gate did."),
                io.Image.Output("images", tooltip="The pictures that passed the gate."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, face_analysis, reference, images, gate: str, threshold: float) -> io.NodeOutput:
        faces = FaceAnalyzer(face_analysis)
        person = person_embedding(faces, list(reference))
        results = similarities(faces, person, read_batch(images, "Picture"), host.progress(len(images)))
        similarity = mean_similarity(results)
        lines = [f"Picture {number}: {result.words}" for number, result in enumerate(results, start=1)]
        lines.append(f"Mean {similarity:.2f}")
        passed, said = through_gate(images, results, similarity, gate, threshold)
        report = "\n".join([*lines, said] if said else lines)
        return io.NodeOutput(similarity, report, passed, ui={"text": [report]})


def through_gate(images, results: list[Similarity], similarity: float, gate: str, threshold: float):
    """The pictures that pass, or the host's blocker in their place, and a sentence on it.

    The blocker keeps every node behind it from running without failing the prompt: similarity and report still arrive.
    """
    if gate == OFF:
        return images, ""
    if not math.isfinite(threshold):
        raise HyperLoRAError(f"Nothing can be compared with the threshold {threshold}: use a number from -1 to 1.")
    if gate == REMOVE:
        kept = [
            number for number, one in enumerate(results) if one.cosine is not None and enough(one.cosine, threshold)
        ]
        said = f"{len(kept)} of {len(results)} pictures passed the threshold {threshold:.2f}"
        return (images[kept] if kept else ExecutionBlocker(None)), said
    if all(one.cosine is None for one in results):  # their mean of 0 says nothing, and would pass a threshold of 0
        said, remedy = "No picture shows a face", "use another seed, or a prompt that shows it"
    elif enough(similarity, threshold):
        return images, ""
    else:
        said = f"The mean similarity {similarity:.2f} is below the threshold {threshold:.2f}"
        remedy = "use another seed, raise the person's weight, or lower the threshold"
    if gate == ERROR:
        by_picture = ", ".join("no face" if one.cosine is None else f"{one.cosine:.2f}" for one in results)
        raise HyperLoRAError(f"{said}: {remedy}. By picture: {by_picture}.")
    return ExecutionBlocker(None), f"{said}: nothing behind this gate was run."


def enough(cosine: float, threshold: float) -> bool:
    """By the two digits that the report shows: 0.40 isn't below 0.40, and a picture reaches 1 beside itself."""
    return round(cosine, 2) >= threshold
