"""Train, export and measure the network that reads what a drawn portrait shows besides the person.

    python -m hyperlora_core.demo.train_attributes
    python -m hyperlora_core.demo.train_attributes --measure

Training can be stopped at any time and goes on where it was.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ..errors import HyperLoRAError
from ..evaluate.attributes import ATTRIBUTES, FILE, METADATA, SIZE, AttributeReader, shown
from ..evaluate.instruments import ATTRIBUTE_MEASURE
from ..files import written_aside
from ..packages import require
from ..train.data import Data, DataConfig, draw_data
from .attribute_network import AttributeNetwork
from .measure_face import held_out_portraits
from .models import DEMO_FOLDER
from .train_face import OPSET, Task, Trainer

STEPS = 2500
SEED = 7
UNKNOWN = -100  # cross_entropy's label for "don't count"
DATA = DataConfig(seed=1, first_person=10_000, people=3000, scenes=4, landmark_error=0.012)
PEOPLE, EACH = 50, 4  # held-out people and portraits of each, for measuring


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


def pixels(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in -1..1, channels-last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).movedim(-1, 1).float().div_(127.5).sub_(1)


def attribute_task(data: Data, seed: int = SEED, batch: int = 48) -> Task:
    """Cross-entropy of every attribute, on portraits softened and mirrored at random."""
    labels = torch.from_numpy(labels_of([data.caption(row) for row in range(len(data))]))  # (rows, attributes)
    sizes = [len(values) for values in ATTRIBUTES.values()]
    network = AttributeNetwork(sum(sizes))

    def loss_of(step: int, _: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        pick = np.sort(rng.integers(len(data), size=batch))
        pictures = np.where(rng.random((batch, 1, 1, 1)) < 0.5, data.images[pick], data.images[pick][:, :, ::-1])
        logits = network(softened(pixels(jpeg(pictures, rng)), rng)).split(sizes, 1)
        losses = [
            functional.cross_entropy(part, wanted, ignore_index=UNKNOWN, reduction="sum") / batch
            for part, wanted in zip(logits, labels[pick].T, strict=True)
        ]
        return {"attributes": sum(losses)}

    return Task(network, network, 4e-3, loss_of)


def export(network: nn.Module, path: Path) -> None:
    """Write the trained network as ONNX that names its attributes and their values."""
    onnx = require("onnx", "Exporting a network")
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


def train(data: Data, out: Path, cache: Path, steps: int = STEPS) -> Path:
    """Train the network, or carry its training on, with its checkpoint in `cache`; returns the file in `out`."""
    torch.manual_seed(SEED)
    trainer = Trainer("attributes", attribute_task(data), (steps,), cache)
    trainer.run(until=steps)
    export(trainer.task.network, out / FILE)
    return out / FILE


def measure(out: Path, people: int = PEOPLE, each: int = EACH) -> dict[str, dict[str, float]]:
    """Kind of picture -> attribute -> share read right, on portraits of held-out people.

    As drawn; softened as in training; and through the demo's autoencoder. A hat's colour counts where a hat is,
    a sketch has no colours.
    """
    from ..evaluate.paint import Painter
    from ..pipeline import load_pipeline

    reader = AttributeReader(out)
    drawn = [portrait for row in held_out_portraits(people, each) for portrait in row]
    pictures = np.stack([portrait.image for portrait in drawn])
    rng = np.random.default_rng(SEED)
    parts = np.array_split(pictures, max(1, len(pictures) // 16))
    soft = torch.cat([softened(pixels(jpeg(part, rng)), rng) for part in parts])
    kinds = {
        "as drawn": list(pictures),
        "softened": list(soft.add(1).mul(127.5).round().byte().movedim(1, -1).numpy()),
        "through the autoencoder": Painter(load_pipeline(DEMO_FOLDER, device="cpu")).reconstruct(pictures),
    }
    truth = [shown(portrait.caption) for portrait in drawn]
    return {kind: _accuracy(truth, reader.read(list(shown_pictures))) for kind, shown_pictures in kinds.items()}


def _accuracy(truth: list[dict[str, str]], seen: list[dict[str, str]]) -> dict[str, float]:
    return {
        name: float(np.mean([s.get(name) == t[name] for t, s in zip(truth, seen, strict=True) if name in t]))
        for name in ATTRIBUTES
    }


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table."""
    rows = [f"| {name} | " + " | ".join(f"{of[name]:.3f}" for of in figures.values()) + " |" for name in ATTRIBUTES]
    return "\n".join([f"| attribute | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|", *rows])


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m hyperlora_core.demo.train_attributes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scratch = Path(tempfile.gettempdir()) / "hyperlora_demo_attributes"
    parser.add_argument("--out", type=Path, default=DEMO_FOLDER / ATTRIBUTE_MEASURE, help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, help="portraits of `hyperlora train demo-data` (default: drawn into --cache, in minutes)"
    )
    parser.add_argument("--cache", type=Path, default=scratch, help="where drawn portraits and the checkpoint are kept")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw portraits")
    parser.add_argument("--measure", action="store_true", help="measure the exported network instead of training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        if options.measure:
            print(table(measure(options.out)))
            return 0
        folder = options.data or options.cache / "data"
        if options.data is None:
            with tqdm(total=DATA.people, desc="portraits  ", unit="person", mininterval=2) as bar:
                draw_data(folder, DATA, options.workers, lambda done, _: bar.update(done - bar.n))
        path = train(Data(folder), options.out, options.cache, options.steps)
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
