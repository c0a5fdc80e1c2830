"""How good a face pack is on held-out people, through InsightFace's own FaceAnalysis.

python -m hyperlora_core.demo.measure_face
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..evaluate.instruments import FACE_MEASURE
from ..locate import DEMO_FACES
from ..packages import require
from .face_crowds import clutter, crowd
from .models import DEMO_FOLDER
from .portraits import HELD_OUT, Identity, Portrait, Scene, render

DET_SIZES = (640, 512, 384, 256)
PROBES = 4


def analyzer(pack: Path, det_size: int = 640):
    """InsightFace's FaceAnalysis on the ONNX files of the folder `pack`, on the CPU."""
    insightface = require("insightface.app", "Measuring a face pack")
    app = insightface.FaceAnalysis(str(pack), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(det_size, det_size))
    return app


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes [4]."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))


def matches(found: np.ndarray, true: np.ndarray) -> tuple[int, int]:
    """(true boxes that were found, found boxes that are none) at an overlap of at least a half."""
    hits = [[overlap(f, t) >= 0.5 for t in true] for f in found]
    return int(np.any(hits, 0).sum()) if hits else 0, sum(not any(row) for row in hits)


def verification_auc(own: np.ndarray, others: np.ndarray) -> float:
    """The chance that a pair of one person is more alike than a pair of two: the area under the ROC curve."""
    order = np.sort(others)
    low, high = np.searchsorted(order, own, "left"), np.searchsorted(order, own, "right")
    return float((low + high).mean() / 2 / len(others))


def identification(references: np.ndarray, probes: np.ndarray) -> dict[str, float]:
    """Rank-1 and verification of probes [people, k, c] against one reference embedding [people, c] each."""
    references = references / np.linalg.norm(references, axis=1, keepdims=True)
    probes = probes / np.linalg.norm(probes, axis=2, keepdims=True)
    alike = np.einsum("pkc,qc->pkq", probes, references)  # [people, k, people]
    own = alike[np.arange(len(alike)), :, np.arange(len(alike))]
    other = alike[np.broadcast_to(~np.eye(len(alike), dtype=bool)[:, None], alike.shape)]
    right = alike.argmax(2) == np.arange(len(alike))[:, None]
    return {
        "rank-1": float(right.mean()),
        "AUC": verification_auc(own.ravel(), other),
        "cosine, same person": float(own.mean()),
        "cosine, two people": float(other.mean()),
    }


def held_out_portraits(people: int, each: int, sketch: float = 0.06) -> list[list[Portrait]]:
    """`each` portraits of each of the first held-out people, in scenes that depend on nothing else."""
    rngs = [np.random.default_rng([seed, 2]) for seed in HELD_OUT[:people]]
    return [
        [render(Identity.from_seed(seed), Scene.random(rng, sketch=sketch)) for _ in range(each)]
        for seed, rng in zip(HELD_OUT[:people], rngs, strict=True)
    ]


def measure(
    pack: Path, measuring: Path, people: int = 100, pictures: int = 200, progress: Callable[[str], None] | None = None
) -> dict[str, float]:
    """The figures of the packs' card, by name; shares are in 0..1."""
    tell = progress or (lambda _: None)
    tell("drawing held-out people")
    drawn = held_out_portraits(people, 1 + PROBES)
    flat = [portrait for row in drawn for portrait in row]
    figures: dict[str, float] = {}
    for size in DET_SIZES:
        tell(f"detection at {size}")
        app = analyzer(pack, size)
        results = [app.det_model.detect(portrait.image[..., ::-1])[0][:, :4] for portrait in flat]
        counts = np.array([matches(found, p.box[None]) for found, p in zip(results, flat, strict=True)])
        figures[f"portraits at {size}: recall"] = counts[:, 0].mean()
        figures[f"portraits at {size}: false detections per picture"] = counts[:, 1].mean()
    tell("crowds")
    app = analyzer(pack)
    figures |= _crowds(app, flat, pictures)
    tell("landmarks and recognition")
    figures |= _faces(app, drawn, measuring)
    return {name: float(value) for name, value in figures.items()}


def _crowds(app, portraits: list[Portrait], pictures: int) -> dict[str, float]:
    images = np.stack([p.image for p in portraits])
    truths = np.stack([np.concatenate([p.box, p.keypoints.ravel()]) for p in portraits])
    rng = np.random.default_rng(HELD_OUT.start)
    found, wrong, total = 0, 0, 0
    for _ in range(pictures):
        picture = crowd(rng, images, truths, 640)
        boxes = app.det_model.detect(np.ascontiguousarray(picture.image[..., ::-1]))[0][:, :4]
        hit, miss = matches(boxes, picture.boxes)
        found, wrong, total = found + hit, wrong + miss, total + len(picture.boxes)
    empty = [np.asarray(clutter(rng, 640)) for _ in range(pictures)]
    alarms = sum(len(app.det_model.detect(picture)[0]) for picture in empty)
    return {
        "crowds and close-ups: recall": found / total,
        "crowds and close-ups: false detections per picture": wrong / pictures,
        "pictures without a face: false detections per picture": alarms / pictures,
    }


def _faces(app, drawn: list[list[Portrait]], measuring: Path) -> dict[str, float]:
    onnx_network = require("insightface.model_zoo", "Measuring a face pack").get_model
    second = onnx_network(str(next(measuring.glob("*.onnx"))), providers=["CPUExecutionProvider"])
    errors, first_embeddings, second_embeddings, seconds = [], [], [], 0.0
    for row in drawn:
        for portrait in row:
            image = np.ascontiguousarray(portrait.image[..., ::-1])
            start = time.perf_counter()
            faces = app.get(image, max_num=1)
            seconds += time.perf_counter() - start
            if not faces:  # a missed face is a wrong answer to everything that follows
                first_embeddings.append(np.full(512, 1e-6))
                second_embeddings.append(np.full(256, 1e-6))
                continue
            width = np.ptp(portrait.landmarks[:33, 0])
            errors.append(np.linalg.norm(faces[0].landmark_2d_106 - portrait.landmarks, axis=1).mean() / width)
            first_embeddings.append(faces[0].embedding)
            second_embeddings.append(second.get(image, faces[0]))
    figures = {"landmarks: mean error / face width": np.mean(errors)}
    for name, embeddings in (("recognition", first_embeddings), ("measuring network", second_embeddings)):
        people = np.stack(embeddings).reshape(len(drawn), 1 + PROBES, -1)
        figures |= {f"{name}: {key}": value for key, value in identification(people[:, 0], people[:, 1:]).items()}
    return figures | {"seconds per picture, all networks": seconds / sum(map(len, drawn))}


def table(figures: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    return "\n".join(
        ["| what | measured |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in figures.items())]
    )


if __name__ == "__main__":
    print(table(measure(DEMO_FOLDER / DEMO_FACES, DEMO_FOLDER / FACE_MEASURE)))
