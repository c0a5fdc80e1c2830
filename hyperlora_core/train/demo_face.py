"""The demo's face networks: the pack's detector, landmarks and recognition, and the recognition that only measures.

Each is trained on drawn faces (face_data.py) in two rounds, between which the rate begins anew
(config.LoopConfig.restarts), and exported as ONNX in the form that InsightFace runs.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..demo.face_crowds import crowd, targets
from ..demo.face_data import load_cache, make_cache, traits
from ..demo.face_networks import Detector, HalfSize, Landmarks, MeasuringRecognition, Recognition
from ..errors import HyperLoRAError
from ..evaluate.instruments import FACE_MEASURE
from ..files import written_aside
from ..locate import DEMO_FACES
from .config import LoopConfig
from .loop import CHECKPOINT, Draw
from .sources import Sources
from .trained import Trained

OPSET = 17
DETECTOR, LANDMARKS, RECOGNITION, MEASURING = "detector", "landmarks", "recognition", "measuring"
FILES = {  # in a demo folder
    DETECTOR: f"{DEMO_FACES}/det_demo.onnx",
    LANDMARKS: f"{DEMO_FACES}/2d106_demo.onnx",
    RECOGNITION: f"{DEMO_FACES}/rec_demo.onnx",
    MEASURING: f"{FACE_MEASURE}/rec_measure.onnx",
}


@dataclass(frozen=True)
class FacesConfig:
    """Which network learns, and whose faces are drawn for it."""

    network: str  # a key of FILES
    first_person: int  # seed of the first identity; the others follow it
    people: int
    scenes: int  # portraits of each


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    faces: FacesConfig


def pixels(images: np.ndarray, scale: float) -> Tensor:
    """uint8 [n, h, w, 3] -> what InsightFace makes of it: float32 [n, 3, h, w], (value - 127.5) / scale."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return x.sub_(127.5).div_(scale)  # stays channels-last in memory


def jittered(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Pixels [n, 3, h, w] under a camera's accidents: exposure, contrast, tint, softness, noise."""
    n = len(x)
    gain = torch.from_numpy(rng.normal(1, 0.12, (n, 1, 1, 1)) * rng.normal(1, 0.05, (n, 3, 1, 1))).float()
    x = x * gain + torch.from_numpy(rng.normal(0, 0.08, (n, 1, 1, 1))).float()
    soft = functional.avg_pool2d(x, 3, 1, 1)
    x = torch.lerp(x, soft, torch.from_numpy(rng.uniform(-0.4, 1, (n, 1, 1, 1))).float())
    noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    return (x + noise * torch.from_numpy(rng.uniform(0, 0.06, (n, 1, 1, 1))).float()).clamp(-1, 1)


def shaken(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Aligned faces [n, 3, h, w] under the alignment errors that a small detector makes: shift, scale, turn."""
    n = len(x)
    scale, turn, shift = rng.normal(1, 0.06, n), rng.normal(0, 0.05, n), rng.normal(0, 0.05, (2, n))
    rows = [scale * np.cos(turn), -scale * np.sin(turn), shift[0], scale * np.sin(turn), scale * np.cos(turn), shift[1]]
    matrices = torch.from_numpy(np.stack(rows, 1).astype(np.float32)).view(n, 2, 3)
    grid = functional.affine_grid(matrices, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Margin(nn.Module):
    """CosFace's classifier (arXiv 1801.09414): the cosine to the own class must win by a margin, which grows in."""

    def __init__(self, width: int, classes: int, scale: float = 24.0, margin: float = 0.3):
        super().__init__()
        self.centres = nn.Parameter(functional.normalize(torch.randn(classes, width)))
        self.scale, self.margin = scale, margin

    def forward(self, embeddings: Tensor, labels: Tensor, grown: Tensor) -> Tensor:
        cosines = functional.normalize(embeddings) @ functional.normalize(self.centres).T  # [n, classes]
        own = functional.one_hot(labels, cosines.shape[1]) * (self.margin * grown)
        return functional.cross_entropy(self.scale * (cosines - own), labels)


class _Task:
    """What the four have in common. The first round, until the first restart, is easier."""

    def __init__(self, config: Config, data: dict[str, np.ndarray]):
        self.config, self.data = config, data
        self.module = make_module(config)

    def early(self, draw: Draw) -> bool:
        """Whether the batch is for the first round."""
        restarts = self.config.loop.restarts
        return not restarts or draw.step < restarts[0]

    def rows(self, draw: Draw) -> np.ndarray:
        """Faces of a batch [n], in the order in which they lie on the disk."""
        return np.sort(draw.rng.integers(len(self.data["person"]), size=draw.batch))

    def sheet(self) -> None:
        """Nothing to look at: these networks make no pictures."""


class Recognising(nn.Module):
    """Recognition by the margin loss. The pack's own network also learns to tell the traits; the measuring one doesn't."""

    def __init__(self, network: nn.Module, width: int, people: np.ndarray, tells_traits: bool, operations=nn):
        super().__init__()
        self.network, self.margin, self.traits = network, Margin(width, len(people)), None
        known = torch.from_numpy(traits(people))  # (people, t)
        self.register_buffer("known", known, persistent=False)
        if tells_traits:
            # told from the direction alone, the part of an embedding that its users keep
            self.traits = nn.Sequential(
                operations.Linear(width, 256), nn.ReLU(), operations.Linear(256, known.shape[1])
            )

    def forward(self, faces: Tensor, labels: Tensor, grown: Tensor) -> dict[str, Tensor]:
        """faces [n, 3, 112, 112]; labels [n]; grown: how much of the margin counts, 0..1."""
        embeddings = self.network(faces)
        losses = {"margin": self.margin(embeddings, labels, grown)}
        if self.traits is not None:
            guess = self.traits(functional.normalize(embeddings) * 8)
            losses["traits"] = 10 * functional.mse_loss(guess, self.known[labels])
        return losses


class RecognitionTask(_Task):
    """Aligned faces; roughly aligned ones after the first round."""

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rows = self.rows(draw)
        faces = pixels(self.data["aligned"][rows], 127.5)
        faces = jittered(faces if self.early(draw) else shaken(faces, draw.rng), draw.rng)
        labels = torch.from_numpy(self.data["person"][rows] - self.config.faces.first_person)
        grown = torch.tensor(min(1.0, draw.step / 500))
        return {"faces": faces.to(draw.device), "labels": labels.to(draw.device), "grown": grown.to(draw.device)}


class Pointing(nn.Module):
    """The 106 points by their mean distance."""

    def __init__(self):
        super().__init__()
        self.network = Landmarks()

    def forward(self, faces: Tensor, points: Tensor) -> dict[str, Tensor]:
        """faces [n, 3, 96, 96]; points [n, 212] in -1..1."""
        off = self.network(faces) - points
        return {"distance": 10 * off.unflatten(1, (106, 2)).square().sum(2).add(1e-6).sqrt().mean()}


class LandmarksTask(_Task):
    """Cut out faces and their points."""

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rows = self.rows(draw)
        faces = jittered(pixels(self.data["cropped"][rows], 128.0), draw.rng)
        return {"faces": faces.to(draw.device), "points": torch.from_numpy(self.data["points"][rows]).to(draw.device)}


class Detecting(nn.Module):
    """Scores by the focal loss (arXiv 1708.02002), boxes and points by their distance where a face is."""

    def __init__(self):
        super().__init__()
        self.network = Detector()

    def forward(self, pictures: Tensor, wanted: Tensor, found_counts: Tensor) -> dict[str, Tensor]:
        """pictures [n, 3, side, side]; wanted [places, 15]: score (-1: doesn't count), box, points; found_counts: how
        much a face counts beside what is none."""
        said = torch.cat([level.flatten(0, 3) for level in self.network.raw(pictures)])
        counts, faces = wanted[:, 0] >= 0, wanted[:, 0] == 1
        found = faces.sum().clamp(min=1)
        right = torch.sigmoid(torch.where(faces, said[:, 0], -said[:, 0]))
        focal = -((1 - right) ** 2) * torch.log(right.clamp(min=1e-6))
        score = (focal * counts * torch.where(faces, found_counts, 1.0)).sum() / found
        off = functional.smooth_l1_loss(said[faces, 1:], wanted[faces, 1:], beta=0.02, reduction="sum") / found
        return {"score": score, "place": off}


class DetectorTask(_Task):
    """Crowds. The first round sees mostly small pictures, which are cheap; the largest faces come after it."""

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rng, early = draw.rng, self.early(draw)
        side = int(rng.choice([256, 320, 384, 640], p=[0.35, 0.35, 0.2, 0.1] if early else [0.1, 0.3, 0.25, 0.35]))
        number = max(3, round(draw.batch * (320 / side) ** 2))
        crowds = [crowd(rng, self.data["portrait"], self.data["truth"], side) for _ in range(number)]
        wanted = [
            torch.from_numpy(np.stack(level))
            for level in zip(*(targets(c.boxes, c.points, side) for c in crowds), strict=True)
        ]
        wanted = torch.cat([level.flatten(0, 3) for level in wanted])  # [places, 15]
        pictures = jittered(pixels(np.stack([c.image for c in crowds]), 128.0), rng)
        # at first misses cost more than false alarms, or the few faces would drown in the clutter
        counts = torch.tensor(3.0 if early else 1.0)
        return {
            "pictures": pictures.to(draw.device), "wanted": wanted.to(draw.device), "found_counts": counts.to(draw.device)
        }  # fmt: skip


TASKS = {DETECTOR: DetectorTask, LANDMARKS: LandmarksTask, RECOGNITION: RecognitionTask, MEASURING: RecognitionTask}


def make_module(config: Config) -> nn.Module:
    """What is trained: the network and the parts that only training needs."""
    if config.faces.network == DETECTOR:
        return Detecting()
    if config.faces.network == LANDMARKS:
        return Pointing()
    people = np.arange(config.faces.first_person, config.faces.first_person + config.faces.people)
    if config.faces.network == RECOGNITION:
        return Recognising(Recognition(), 512, people, tells_traits=True)
    return Recognising(MeasuringRecognition(), 256, people, tells_traits=False)


def prepare(
    config: Config, sources: Sources, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw the faces, unless they are there; returns their folder. `progress(people done, people)` may raise to stop."""
    faces = config.faces
    if faces.network not in FILES:
        raise HyperLoRAError(f"faces.network is {faces.network!r}. Known: {', '.join(FILES)}.")
    people = range(faces.first_person, faces.first_person + faces.people)
    folder = sources.root / "faces" / f"{faces.first_person}_{faces.people}x{faces.scenes}"
    return make_cache(folder, people, faces.scenes, workers, progress)


def make_task(config: Config, sources: Sources, _name: str) -> _Task:
    """The task of the config's network."""
    data = load_cache(prepare(config, sources, os.cpu_count() or 1))
    torch.manual_seed(config.loop.seed)
    return TASKS[config.faces.network](config, data)


def export(sources: Sources, name: str, folder: Path) -> Path:
    """Write the trained network of the stage `name` into the demo's folder; returns the file."""
    trained = Trained(sources.root / name / CHECKPOINT)
    config = trained.config(Config)
    path = folder / FILES[config.faces.network]
    write_onnx(config.faces.network, trained.fill(make_module(config)).network, path)
    return path


def write_onnx(kind: str, network: nn.Module, path: Path) -> None:
    """Write a trained network of FILES as ONNX in the form that InsightFace's model router recognises."""
    network = network.eval()
    options: dict = {"input_names": ["input"], "opset_version": OPSET, "dynamo": False}
    if kind == DETECTOR:
        example = torch.zeros(1, 3, 320, 320)
        options["output_names"] = [f"{kind}_{stride}" for kind in ("score", "box", "points") for stride in (8, 16, 32)]
        options["dynamic_axes"] = {
            "input": {2: "height", 3: "width"},
            **{out: {0: f"{out}_places"} for out in options["output_names"]},
        }
    elif kind == LANDMARKS:
        network, example = HalfSize(network), torch.zeros(1, 3, 192, 192)
        options |= {"output_names": ["points"], "dynamic_axes": {"input": {0: "n"}, "points": {0: "n"}}}
    else:
        example = torch.zeros(1, 3, 112, 112)
        options |= {"output_names": ["embedding"], "dynamic_axes": {"input": {0: "n"}, "embedding": {0: "n"}}}
    with written_aside(path) as aside, warnings.catch_warnings():
        # the exporter that needs no further package warns that it is the older one
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network, (example,), str(aside), **options)
