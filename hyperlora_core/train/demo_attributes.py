"""The demo's network that reads what a drawn portrait shows besides the person (evaluate/attributes.py), exported as ONNX."""

import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from .. import packages
from ..demo.attribute_network import AttributeNetwork
from ..evaluate.attributes import ATTRIBUTES, FILE, METADATA, SIZE, shown
from ..evaluate.instruments import ATTRIBUTE_MEASURE
from ..files import folder_aside, written_aside
from .config import LoopConfig
from .data import Data, DataConfig, draw_data
from .demo_face import OPSET
from .loop import CHECKPOINT, Draw
from .sources import Sources
from .trained import Trained

UNKNOWN = -100  # cross_entropy's label for "don't count"


@dataclass(frozen=True)
class Config:
    loop: LoopConfig
    data: DataConfig


def labels_of(captions: list[str]) -> np.ndarray:
    """Captions -> int64 [n, attributes], UNKNOWN where a caption can't tell (a sketch's colours)."""
    looks = [shown(caption) for caption in captions]
    return np.array(
        [[values.index(row[name]) if name in row else UNKNOWN for name, values in ATTRIBUTES.items()] for row in looks]
    )


def jpeg(pictures: np.ndarray, rng: np.random.Generator, share: float = 0.25) -> np.ndarray:
    """A `share` of pictures uint8 [n, h, w, 3] replaced by what JPEG leaves of them."""
    pictures = pictures.copy()
    for i in np.flatnonzero(rng.random(len(pictures)) < share):
        file = io.BytesIO()
        Image.fromarray(pictures[i]).save(file, "JPEG", quality=int(rng.integers(35, 92)))
        pictures[i] = np.asarray(Image.open(file))
    return pictures


def softened(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Pixels [n, 3, h, w] in -1..1 as a small autoencoder or a diffusion model leaves them: soft, blotchy, a bit off."""
    x = x.contiguous()  # resizing is twice as fast than channels-last
    n, _, height, width = x.shape

    def per_picture(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).view(n, -1, 1, 1)

    # detail lost to the latents: down by up to 3.6 and up again, factors for each quarter of the batch
    parts = []
    for part in x.chunk(4):
        small = [int(side / rng.uniform(1.1, 3.6)) for side in (height, width)]
        down = functional.interpolate(part, small, mode="bilinear", antialias=True, align_corners=False)
        parts.append(functional.interpolate(down, (height, width), mode="bicubic", align_corners=False))
    x = torch.lerp(x, torch.cat(parts), per_picture(rng.uniform(-0.3, 1, n)))  # below 0: sharpened
    blotches = torch.from_numpy(rng.standard_normal((n, 3, height // 8, width // 8), np.float32))
    x = x + functional.interpolate(blotches, (height, width), mode="bilinear") * per_picture(rng.uniform(0, 0.07, n))
    grain = torch.from_numpy(rng.standard_normal((n, 1, height, width), np.float32))
    x = x + grain * per_picture(rng.uniform(0, 0.06, n) * (rng.random(n) < 0.5))
    tint = per_picture(rng.normal(1, 0.06, (n, 1)) * rng.normal(1, 0.02, (n, 3)))
    x = (x * tint + per_picture(rng.normal(0, 0.04, n))).clamp(-1, 1)
    return x.contiguous(memory_format=torch.channels_last)


def signed_pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in -1..1, channels-last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, 1).float().div_(127.5).sub_(1)


class Reading(nn.Module):
    """Cross-entropy of every attribute."""

    def __init__(self):
        super().__init__()
        self.sizes = [len(values) for values in ATTRIBUTES.values()]
        self.network = AttributeNetwork(sum(self.sizes))

    def forward(self, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """pictures [n, 3, 128, 128] in -1..1; labels [n, attributes], UNKNOWN where none."""
        logits = self.network(pictures).split(self.sizes, 1)
        losses = [
            functional.cross_entropy(part, wanted, ignore_index=UNKNOWN, reduction="sum") / len(pictures)
            for part, wanted in zip(logits, labels.T, strict=True)
        ]
        return {"attributes": sum(losses)}


class AttributesTask:
    """Portraits softened and mirrored at random."""

    def __init__(self, data: Data):
        self.data, self.module = data, Reading()
        self.labels = torch.from_numpy(labels_of([data.caption(row) for row in range(len(data))]))  # (rows, attributes)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        rng, images = draw.rng, self.data.images
        rows = np.sort(rng.integers(len(self.data), size=draw.batch))
        mirrored = rng.random((draw.batch, 1, 1, 1)) < 0.5
        pictures = np.where(mirrored, images[rows][:, :, ::-1], images[rows])
        softer = softened(signed_pixels(jpeg(pictures, rng)), rng)
        return {"pictures": softer.to(draw.device), "labels": self.labels[rows].to(draw.device)}

    def sheet(self) -> None:
        """Nothing to look at: the network makes no pictures."""


def prepare(
    config: Config, sources: Sources, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw the portraits, unless they are there; returns their folder. `progress(people done, people)` may raise to stop."""
    folder = sources.root / "attributes_data"
    if folder.exists():
        draw_data(folder, config.data, workers, progress)  # which tells of a folder that holds others
    else:
        with folder_aside(folder) as aside:
            draw_data(aside, config.data, workers, progress)
    return folder


def make_task(config: Config, sources: Sources, _name: str) -> AttributesTask:
    """The task on drawn portraits."""
    data = Data(prepare(config, sources, os.cpu_count() or 1))
    torch.manual_seed(config.loop.seed)
    return AttributesTask(data)


def export(sources: Sources, name: str, folder: Path) -> Path:
    """Write the trained network into the demo's folder; returns the file."""
    path = folder / ATTRIBUTE_MEASURE / FILE
    write_onnx(Trained(sources.root / name / CHECKPOINT).fill(Reading()).network, path)
    return path


def write_onnx(network: nn.Module, path: Path) -> None:
    """Write the trained network as ONNX that names its attributes and their values."""
    onnx = packages.require("onnx", "Exporting a network")
    with written_aside(path) as aside:
        with warnings.catch_warnings():
            # the exporter that needs no further package warns that it is the older one
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.onnx.export(
                network.eval(),
                (torch.zeros(1, 3, SIZE, SIZE),),
                str(aside),
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(str(aside))
        onnx.helper.set_model_props(model, {METADATA: json.dumps(ATTRIBUTES), "input": "RGB, value / 127.5 - 1"})
        onnx.save(model, str(aside))
