"""What each part of the training is worth: short trainings with one thing left out or put in, painted and measured.

    python -m benchmarks.ablations --out outputs/train

--out must hold the demo's training pictures and the finished stages base-lora, id-people and id-reader. Rows of one group take
the same number of steps, and each is measured by `hyperlora evaluate` with the ID-LoRA alone. What is trained lies in
--out/ablations and isn't trained again. The exit status is 130 when it was stopped.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hyperlora_core.cli import main as hyperlora
from hyperlora_core.cli.train import STAGES, chosen_device, train_with_bar
from hyperlora_core.evaluate.protocol import ID_ONLY
from hyperlora_core.locate import DEMO_CLIP, DEMO_FACES, demo_folder
from hyperlora_core.train import reader, stage
from hyperlora_core.train.config import config_path, load_config
from hyperlora_core.train.loop import CHECKPOINT
from hyperlora_core.train.pulid import PuLIDConfig
from hyperlora_core.train.sources import Sources

FOLDER = "ablations"  # in --out
MODULES = {"stage": stage, "reader": reader}
PULID = PuLIDConfig(semantic=0.6, layout=0.1, identity=1.0, pictures=16, steps=6, gradient_steps=2)


class Step(NamedTuple):
    """One training of a row."""

    stage: str  # of the shipped configs
    steps: int
    changes: dict[str, Any] = {}  # section.key -> value; "pulid" -> the section, which the config lacks
    after: tuple[str, ...] = ()  # folders in --out, and the row's own by their stage, that it goes on from


PAPER = ("embedding", "clip", "trunk", "bases")  # groups that learn where all is learned at once
ALONE = {"stage.scenarios": (1.0, 0.0, 0.0)}
SMALL = {"hyperlora.bases": 8, "hyperlora.rank": 4}
LARGE = {"hyperlora.bases": 32, "hyperlora.rank": 16}
GENTLE = {"loop.rate": 2e-4}  # for what has learned already
TRAINED = ("base-lora", "id-people")
READ = (*TRAINED, "id-reader")
ONCE = Step("id-embedding", 200, {"stage.trains": PAPER}, ("base-lora",))


def _reading(*conditions: str) -> Step:
    changes = {"reader.conditions": conditions, "reader.trains": (*conditions, "trunk")}
    return Step("id-reader", 400, changes, TRAINED)


def _people(size: dict[str, Any], changes: dict[str, Any] | None = None) -> tuple[Step, ...]:
    """Codes of their own, then the reader; without base branch: the trained one has another size."""
    return Step("id-people", 300, size | (changes or {})), Step("id-reader", 400, size, ("id-people",))


ROWS: dict[str, tuple[Step, ...]] = {
    "reader of both": (_reading("embedding", "clip"),),
    "reader of the embedding": (_reading("embedding"),),
    "reader of CLIP tokens": (_reading("clip"),),
    "K 16, rank 8": _people({}),
    "K 8, rank 4": _people(SMALL),
    "K 32, rank 16": _people(LARGE),
    "half the people": _people({}, {"people.people": 1536}),
    "reader, then id-embedding": (Step("id-embedding", 50, GENTLE, READ),),
    "reader, then with PuLID": (Step("id-embedding", 50, {**GENTLE, "pulid": PULID}, READ),),
    "three stages": (
        Step("id-clip", 67, after=("base-lora",)),
        Step("id-embedding", 133, after=("base-lora", "id-clip")),
    ),
    "one stage": (ONCE,),
    "one stage, only (a)": (ONCE._replace(changes=ONCE.changes | ALONE),),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/train"), metavar="FOLDER", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--people", type=int, default=100, metavar="N", help="held-out people (default: %(default)s)")
    parser.add_argument("--paint-steps", type=int, default=12, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    arguments = parser.parse_args(argv)
    demo = demo_folder()
    sources = Sources(arguments.out, arguments.out / "data", demo, demo / DEMO_CLIP, demo / DEMO_FACES)
    device = chosen_device(arguments)
    checkpoints = []
    for row in arguments.rows:
        status = trained(row, sources, device)
        if status:
            return status
        checkpoints += ["--checkpoint", f"{row}={exported(row, sources)}"]
    report = arguments.out / FOLDER / "report"
    how = ["--people", str(arguments.people), "--steps", str(arguments.paint_steps), "--out", str(report)]
    return hyperlora(["evaluate", *how, "--methods", ID_ONLY, *checkpoints, "--as", ID_ONLY])


def trained(row: str, sources: Sources, device: str) -> int:
    """Train what isn't trained yet; returns the exit status."""
    for step in ROWS[row]:
        name = folder_of(row, step)
        module = MODULES[STAGES[step.stage][0]]
        config = changed(load_config(config_path(step.stage, "cpu", device), module.Config), row, step)
        resume = (sources.root / name / CHECKPOINT).exists()
        task = module.make_task(config, sources, name)
        status = train_with_bar(task, config, sources.root / name, device, resume, f"{row}: {step.stage}")
        if status:
            return status
    return 0


def exported(row: str, sources: Sources) -> Path:
    """The checkpoint folder of a trained row."""
    last = ROWS[row][-1]
    folder = sources.root / folder_of(row, last) / "hyper_lora"
    return MODULES[STAGES[last.stage][0]].export(sources, folder_of(row, last), folder)


def folder_of(row: str, step: Step) -> str:
    """Where a row's training lies in --out."""
    return f"{FOLDER}/{row}/{step.stage}"


def changed(config: Any, row: str, step: Step) -> Any:
    """The shipped config with a row's changes."""
    own = {other.stage for other in ROWS[row]}
    start = tuple(f"{FOLDER}/{row}/{name}" if name in own else name for name in step.after)
    section = "reader" if step.stage == "id-reader" else "stage"
    changes = {
        "loop.steps": step.steps,
        "loop.warmup": min(20, step.steps // 5),
        f"{section}.start": start,
    } | step.changes
    for key, value in changes.items():
        part, _, name = key.partition(".")
        new = dataclasses.replace(getattr(config, part), **{name: value}) if name else value
        config = dataclasses.replace(config, **{part: new})
    return config


if __name__ == "__main__":
    sys.exit(main())
