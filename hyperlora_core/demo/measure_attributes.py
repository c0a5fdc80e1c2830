"""How well the demo's attribute network reads pictures of people whom no training draws.

python -m hyperlora_core.demo.measure_attributes
"""

from pathlib import Path

import numpy as np
import torch

from ..evaluate.attributes import ATTRIBUTES, AttributeReader, shown
from ..evaluate.instruments import ATTRIBUTE_MEASURE
from ..train.demo_attributes import jpeg, signed_pixels, softened
from .measure_face import held_out_portraits
from .models import DEMO_FOLDER

SEED = 7
PEOPLE, EACH = 50, 4  # held-out people and portraits of each


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
    soft = torch.cat([softened(signed_pixels(jpeg(part, rng)), rng) for part in parts])
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


if __name__ == "__main__":
    print(table(measure(DEMO_FOLDER / ATTRIBUTE_MEASURE)))
