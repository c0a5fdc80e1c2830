"""Train, export and measure the demo's face packs.

    python -m hyperlora_core.demo.train_face --out models/demo/face
    python -m hyperlora_core.demo.train_face --out models/demo/face --measure

Training can be stopped at any time and goes on where it was; the networks named by --only may be trained side by side.
"""

import argparse
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from ..errors import HyperLoRAError
from ..files import written_aside
from .face_crowds import crowd, targets
from .face_data import load_cache, make_cache, traits
from .face_networks import Detector, HalfSize, Landmarks, MeasuringRecognition, Recognition

# (steps of the rounds, people, scenes of each) per network; the measuring network sees other people than the pack
PLAN = {
    "detector": ((1200, 1400), range(2000), 12),
    "landmarks": ((1200, 1800), range(2000), 12),
    "recognition": ((1400, 800), range(2000), 12),
    "measuring": ((800, 800), range(500_000, 501_000), 12),
}
FILES = {
    "detector": "det_demo.onnx",
    "landmarks": "2d106_demo.onnx",
    "recognition": "rec_demo.onnx",
    "measuring": "rec_measure.onnx",
}
OPSET = 17
SAVE_EVERY = 250


class Task(NamedTuple):
    """What one network's training consists of."""

    network: nn.Module  # what is exported
    module: nn.Module  # what is trained: the network and the parts that only training needs
    rate: float  # the highest learning rate
    loss_of: Callable[[int, int], dict[str, torch.Tensor]]  # the loss' terms, from the step and the round alone


class Trainer:
    """Trains a task in rounds, each with its own warm-up and cosine decay, so that every round ends in a usable network.

    All randomness comes from the step's number, so a stopped training goes on with the step that it had reached.
    """

    def __init__(self, name: str, task: Task, rounds: tuple[int, ...], folder: Path):
        self.name, self.task, self.rounds, self.path = name, task, rounds, folder / f"{name}.pt"
        self.module = task.module.to(memory_format=torch.channels_last)  # small convolutions gain a third on a CPU
        matrices = [p for p in self.module.parameters() if p.ndim > 1]
        others = [p for p in self.module.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, task.rate)
        self.done = 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            if tuple(state["rounds"][: len(rounds)]) != rounds[: len(state["rounds"])]:
                raise HyperLoRAError(
                    f"{self.path} belongs to a training in rounds of {state['rounds']} steps: delete it or train those."
                )
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done = state["done"]

    def save(self) -> None:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        with written_aside(self.path) as aside:
            torch.save({**state, "done": self.done, "rounds": list(self.rounds)}, aside)

    def place(self, step: int) -> tuple[int, float]:
        """The round that a step belongs to, and how far it is in it, in 0..1."""
        number = int(np.searchsorted(np.cumsum(self.rounds), step, "right"))
        return number, (step - sum(self.rounds[:number])) / self.rounds[number]

    def run(self, until: int) -> None:
        """Train up to a step with a progress bar; whatever stops it, the checkpoint is saved."""
        self.module.train()
        recent: dict[str, float] = {}
        bar = tqdm(total=until, initial=self.done, desc=f"{self.name:<11}", unit="step", mininterval=2)
        try:
            while self.done < until:
                number, at = self.place(self.done)
                for group in self.optimizer.param_groups:
                    decay = 0.5 * (1 + math.cos(math.pi * max(0.0, at - 0.1) / 0.9))
                    group["lr"] = self.task.rate * 0.7**number * min(1.0, (at + 1e-3) / 0.1) * decay
                losses = self.task.loss_of(self.done, number)
                self.optimizer.zero_grad()
                sum(losses.values()).backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
                self.optimizer.step()
                self.done += 1
                for key, value in losses.items():
                    recent[key] = 0.97 * recent.get(key, value.item()) + 0.03 * value.item()
                bar.set_postfix({key: f"{value:.4f}" for key, value in recent.items()}, refresh=False)
                bar.update()
                if self.done % SAVE_EVERY == 0:
                    self.save()
        finally:
            bar.close()
            self.save()


def pixels(images: np.ndarray, scale: float) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> what InsightFace makes of it: float32 [n, 3, h, w], (value - 127.5) / scale."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    return x.sub_(127.5).div_(scale)  # stays channels-last in memory


def jittered(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pixels [n, 3, h, w] under a camera's accidents: exposure, contrast, tint, softness, noise."""
    n = len(x)
    gain = torch.from_numpy(rng.normal(1, 0.12, (n, 1, 1, 1)) * rng.normal(1, 0.05, (n, 3, 1, 1))).float()
    x = x * gain + torch.from_numpy(rng.normal(0, 0.08, (n, 1, 1, 1))).float()
    soft = functional.avg_pool2d(x, 3, 1, 1)
    x = torch.lerp(x, soft, torch.from_numpy(rng.uniform(-0.4, 1, (n, 1, 1, 1))).float())
    noise = torch.from_numpy(rng.standard_normal(x.shape, np.float32))
    return (x + noise * torch.from_numpy(rng.uniform(0, 0.06, (n, 1, 1, 1))).float()).clamp(-1, 1)


def shaken(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
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

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, grown: float) -> torch.Tensor:
        cosines = functional.normalize(embeddings) @ functional.normalize(self.centres).T  # [n, classes]
        own = functional.one_hot(labels, cosines.shape[1]) * (self.margin * grown)
        return functional.cross_entropy(self.scale * (cosines - own), labels)


def recognition_task(name: str, faces: Path, seed: int, batch: int = 64, operations=nn) -> Task:
    """Recognition by the margin loss, with rough alignments after the first round.

    The pack's own network also learns to tell the traits; the measuring one doesn't.
    """
    data = load_cache(faces)
    images, people = data["aligned"], np.asarray(data["person"])
    labels = torch.from_numpy(people - people.min())
    known = torch.from_numpy(traits(np.unique(people)))
    network = Recognition() if name == "recognition" else MeasuringRecognition()
    width = 512 if name == "recognition" else 256
    module = nn.ModuleDict({"network": network, "margin": Margin(width, len(known))})
    if name == "recognition":
        # told from the direction alone, the part of an embedding that its users keep
        module["traits"] = nn.Sequential(
            operations.Linear(width, 256), nn.ReLU(), operations.Linear(256, known.shape[1])
        )

    def loss_of(step: int, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        pick = np.sort(rng.integers(len(images), size=batch))
        x = pixels(images[pick], 127.5)
        embeddings = network(jittered(shaken(x, rng) if number else x, rng))
        losses = {"margin": module["margin"](embeddings, labels[pick], min(1.0, step / 500))}
        if name == "recognition":
            guess = module["traits"](functional.normalize(embeddings) * 8)
            losses["traits"] = 10 * functional.mse_loss(guess, known[labels[pick]])
        return losses

    return Task(network, module, 3e-3, loss_of)


def landmarks_task(faces: Path, seed: int, batch: int = 64) -> Task:
    """The 106 points by their mean distance."""
    data = load_cache(faces)
    images, points = data["cropped"], data["points"]
    network = Landmarks()

    def loss_of(step: int, _: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        pick = np.sort(rng.integers(len(images), size=batch))
        off = network(jittered(pixels(images[pick], 128.0), rng)) - torch.from_numpy(points[pick])
        return {"distance": 10 * off.unflatten(1, (106, 2)).square().sum(2).add(1e-6).sqrt().mean()}

    return Task(network, network, 3e-3, loss_of)


def detector_task(faces: Path, seed: int, batch: int = 12) -> Task:
    """Scores by the focal loss (arXiv 1708.02002), boxes and points by their distance where a face is.

    The first round sees mostly small pictures, which are cheap; the largest faces come after it.
    """
    data = load_cache(faces)
    portraits, truths = data["portrait"], data["truth"]
    network = Detector()

    def loss_of(step: int, number: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([seed, step])
        early = number == 0
        side = int(rng.choice([256, 320, 384, 640], p=[0.35, 0.35, 0.2, 0.1] if early else [0.1, 0.3, 0.25, 0.35]))
        crowds = [crowd(rng, portraits, truths, side) for _ in range(max(3, round(batch * (320 / side) ** 2)))]
        wanted = [
            torch.from_numpy(np.stack(level))
            for level in zip(*(targets(c.boxes, c.points, side) for c in crowds), strict=True)
        ]
        wanted = torch.cat([level.flatten(0, 3) for level in wanted])  # [places, 15]
        x = jittered(pixels(np.stack([c.image for c in crowds]), 128.0), rng)
        said = torch.cat([level.flatten(0, 3) for level in network.raw(x)])
        counts, faces = wanted[:, 0] >= 0, wanted[:, 0] == 1
        found = faces.sum().clamp(min=1)
        right = torch.sigmoid(torch.where(faces, said[:, 0], -said[:, 0]))
        focal = -((1 - right) ** 2) * torch.log(right.clamp(min=1e-6))
        # at first misses cost more than false alarms, or the few faces would drown in the clutter
        score = (focal * counts * torch.where(faces, 3.0 if early else 1.0, 1.0)).sum() / found
        off = functional.smooth_l1_loss(said[faces, 1:], wanted[faces, 1:], beta=0.02, reduction="sum") / found
        return {"score": score, "place": off}

    return Task(network, network, 2e-3, loss_of)


def export(name: str, network: nn.Module, path: Path) -> None:
    """Write a trained network as ONNX in the form that InsightFace's model router recognises."""
    network = network.eval()
    options: dict = {"input_names": ["input"], "opset_version": OPSET, "dynamo": False}
    if name == "detector":
        example = torch.zeros(1, 3, 320, 320)
        options["output_names"] = [f"{kind}_{stride}" for kind in ("score", "box", "points") for stride in (8, 16, 32)]
        options["dynamic_axes"] = {
            "input": {2: "height", 3: "width"},
            **{out: {0: f"{out}_places"} for out in options["output_names"]},
        }
    elif name == "landmarks":
        network, example = HalfSize(network), torch.zeros(1, 3, 192, 192)
        options |= {"output_names": ["points"], "dynamic_axes": {"input": {0: "n"}, "points": {0: "n"}}}
    else:
        example = torch.zeros(1, 3, 112, 112)
        options |= {"output_names": ["embedding"], "dynamic_axes": {"input": {0: "n"}, "embedding": {0: "n"}}}
    with written_aside(path) as aside, warnings.catch_warnings():
        # the exporter that needs no further package warns that it is the older one
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network, (example,), str(aside), **options)


def train(name: str, out: Path, cache: Path, rounds: tuple[int, ...] = (), workers: int = 2) -> Path:
    """Train one network of PLAN, or carry its training on; exported into `out` after each round. Returns the file."""
    planned, people, scenes = PLAN[name]
    rounds = rounds or planned
    with tqdm(total=len(people), desc="portraits  ", unit="person", mininterval=2) as bar:
        faces = make_cache(
            cache / f"faces_{people.start}", people, scenes, workers, lambda done, _: bar.update(done - bar.n)
        )
    seed = list(PLAN).index(name)
    torch.manual_seed(seed)
    if name == "detector":
        task = detector_task(faces, seed)
    elif name == "landmarks":
        task = landmarks_task(faces, seed)
    else:
        task = recognition_task(name, faces, seed)
    trainer = Trainer(name, task, rounds, cache)
    for number in range(len(rounds)):
        trainer.run(until=sum(rounds[: number + 1]))
        export(name, task.network, out / FILES[name])
    return out / FILES[name]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m hyperlora_core.demo.train_face",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("models/demo/face"), help="the face pack's folder")
    parser.add_argument(
        "--out-measure", type=Path, help="the measuring network's folder (default: face_measure beside --out)"
    )
    parser.add_argument("--only", nargs="+", choices=list(PLAN), default=list(PLAN), help="the networks to train")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[], help="steps of the training rounds (default: as the shipped ones)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "hyperlora_demo_face",
        help="where drawn faces and checkpoints are kept",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw portraits")
    parser.add_argument(
        "--measure", action="store_true", help="measure the exported packs on held-out people instead of training"
    )
    options = parser.parse_args(arguments)
    measuring = options.out_measure or options.out.parent / "face_measure"
    torch.set_num_threads(options.threads)
    try:
        if options.measure:
            from .measure_face import measure, table

            print(table(measure(options.out, measuring)))
            return 0
        for name in options.only:
            path = train(
                name,
                measuring if name == "measuring" else options.out,
                options.cache,
                tuple(options.steps),
                options.workers,
            )
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    except HyperLoRAError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
