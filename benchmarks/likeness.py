"""How much of a person a stage's LoRAs carry, without painting: the model's error with the right person's LoRA, with another
person's, with the mean person's and with none, on the same noise.

    python -m benchmarks.likeness --out outputs/train --stage id-embedding

The photos are those of the training. The share is what of the coefficients' squares differs between people. The exit status is
1 unless the right person's error is the lowest.
"""

import argparse
import dataclasses
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hyperlora_core.locate import DEMO_CLIP, demo_folder
from hyperlora_core.train import reader, stage
from hyperlora_core.train.config import config_path, load_config
from hyperlora_core.train.loop import CHECKPOINT, Draw
from hyperlora_core.train.sources import Sources
from hyperlora_core.train.trained import Trained

NONE, MEAN, OTHER, RIGHT = "no LoRA", "the mean person's", "another person's", "the right person's"
BANDS = (0, 350, 600, 800, 1000)  # steps of the noise schedule
SEED, BATCH = 0, 64


def trained_stage(sources: Sources, name: str) -> stage.StageTask:
    """The stage with what it has learned so far; every picture is one to reconstruct. A reader is looked at as the stage
    id-embedding would begin with it."""
    checkpoint = sources.root / name / CHECKPOINT
    trained = Trained(checkpoint)
    if "reader.start" in trained.settings:
        given = trained.config(reader.Config)
        shipped = load_config(config_path("id-embedding", "cpu", "cpu"), stage.Config).stage
        config = stage.Config(given.loop, given.hyperlora, dataclasses.replace(shipped, start=given.reader.start))
    else:
        config = trained.config(stage.Config)
    only = dataclasses.replace(config.stage, scenarios=(1.0, 0.0, 0.0), base_off=1.0, spread=0.0)
    task = stage.make_task(dataclasses.replace(config, stage=only, pulid=None), sources, name)
    stage.take_over(task.module.network, checkpoint)
    task.module.eval()
    return task


@torch.no_grad()
def errors(task: stage.StageTask, number: int) -> tuple[dict[str, Tensor], Tensor, float]:
    """Of one batch [n]: errors [n] by whose LoRA it is, steps [n], and the coefficients' share that differs."""
    rng = np.random.default_rng([SEED, number])
    batch = task.batch(Draw(rng, BATCH, torch.device("cpu")))
    module, ones = task.module, torch.ones(BATCH)
    inputs = tuple(batch[name] for name in ("noisy", "steps", "text", "pooled", "time_ids"))
    own = module.network.coefficients(batch.get("embeds"), batch.get("tokens"))  # (n, 8 * modules, K)
    mean = own.mean(0, keepdim=True)
    used = {NONE: None, MEAN: mean.expand_as(own), OTHER: own.roll(1, 0), RIGHT: own}
    given = {
        name: module._errors(
            inputs,
            {} if coefficients is None else module.network.low_rank(coefficients, "id", ones),
            batch["noise"],
            batch["weights"],
        )
        for name, coefficients in used.items()
    }
    return given, batch["steps"], 1 - float(mean.square().sum() / own.square().sum((1, 2)).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of `hyperlora train`")
    parser.add_argument(
        "--stage", choices=("id-reader", "id-clip", "id-embedding"), default="id-embedding", help="default: %(default)s"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="default: data in --out")
    parser.add_argument("--base", type=Path, default=demo_folder(), metavar="SDXL", help="default: the demo's")
    parser.add_argument("--clip", type=Path, default=demo_folder() / DEMO_CLIP, metavar="CLIP", help="likewise")
    parser.add_argument("--batches", type=int, default=8, metavar="N", help=f"of {BATCH} photos (default: %(default)s)")
    asked = parser.parse_args()

    sources = Sources(asked.out, asked.data or asked.out / "data", asked.base, asked.clip)
    task = trained_stage(sources, asked.stage)
    measured = [errors(task, number) for number in tqdm(range(asked.batches), desc="batches")]
    steps = torch.cat([each[1] for each in measured])
    by_whose = {name: torch.cat([each[0][name] for each in measured]) for name in measured[0][0]}
    bands = list(pairwise(BANDS))
    print("| error with | all | " + " | ".join(f"steps {low} to {high}" for low, high in bands) + " |")
    print("|---" * (len(bands) + 2) + "|")
    for name, values in by_whose.items():
        parts = [values[(steps >= low) & (steps < high)].mean() for low, high in bands]
        print(f"| {name} | " + " | ".join(f"{float(part):.4f}" for part in (values.mean(), *parts)) + " |")
    print(f"\nOf the coefficients' squares {np.mean([each[2] for each in measured]):.1%} differ between people.")
    means = {name: float(values.mean()) for name, values in by_whose.items()}
    return 0 if min(means, key=means.get) == RIGHT else 1


if __name__ == "__main__":
    sys.exit(main())
