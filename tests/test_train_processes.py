"""HyperLoRA's stages in several processes that share a step, as `accelerate launch` starts them on several GPUs."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from places import ROOT
from test_train_stage import short, sources  # noqa: F401

from hyperlora_core.train import loop, stage
from hyperlora_core.train.trained import read_checkpoint

# without cache: of what two processes compute of one photo the later one's is kept, which may differ in the last bit
STEPS = {"cache": False, "steps": 6, "batch": 4, "save_every": 1, "warmup": 1, "precision": "no"}
ONE = """
import os, sys
from test_train_processes import STEPS
from test_train_stage import short
from hyperlora_core.locate import DEMO_CLIP, demo_folder
from hyperlora_core.train import loop, stage
from hyperlora_core.train.sources import Sources
from pathlib import Path

root, name, folder, dies_at = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])

def progress(step, _steps, losses):
    if step == dies_at and losses:
        os._exit(1)

sources = Sources(root, root / "data", root / "sdxl", demo_folder() / DEMO_CLIP)
given = short(name, **STEPS)
resume = (folder / loop.CHECKPOINT).exists()
loop.train(stage.make_task(given, sources, name), given, folder, "cpu", resume, progress)
"""


@pytest.fixture(scope="module")
def launch(sources, tmp_path_factory):  # noqa: F811
    script = tmp_path_factory.mktemp("script") / "one.py"
    script.write_text(ONE)

    def start(name, folder, dies_at=0):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, str(sources.root), name, str(folder), str(dies_at)],
            env=os.environ | paths, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def base(launch, sources):  # noqa: F811
    done = launch("base-lora", sources.root / "base-lora")
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_make_one_training(launch, sources, base):  # noqa: F811
    killed = launch("base-lora", sources.root / "killed", 4)
    assert killed.returncode != 0
    whole, begun = (read_checkpoint(sources.root / name / loop.CHECKPOINT) for name in ("base-lora", "killed"))
    assert (whole["step"], begun["step"]) == (6, 3)  # nothing was saved of the step at which the processes died
    resumed = launch("base-lora", sources.root / "killed")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    again = read_checkpoint(sources.root / "killed" / loop.CHECKPOINT)
    assert all(torch.equal(value, again["module"][name]) for name, value in whole["module"].items())

    # each process drew a batch of its own, and the losses are their mean
    task = stage.make_task(short("base-lora", **STEPS), sources, "base-lora")
    losses = [loss_of_the_first_step(task, process) for process in (0, 1)]
    with (sources.root / "base-lora" / loop.LOSSES).open() as file:
        told = float(next(csv.DictReader(file))["reconstruct"])
    assert abs(losses[0] - losses[1]) > 1e-4 and told == pytest.approx(sum(losses) / 2, rel=1e-5)


@torch.no_grad()
def loss_of_the_first_step(task, process):
    source = np.random.SeedSequence([short("base-lora").loop.seed, 0, 0, process])
    torch.manual_seed(int(source.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    draw = loop.Draw(np.random.default_rng(source), STEPS["batch"], torch.device("cpu"))
    return float(task.module(**task.batch(draw))["reconstruct"])


def test_the_papers_last_stage_in_two_processes(launch, sources, base):  # noqa: F811
    """Scenarios differ between processes, and so do the parts of the network that have a gradient."""
    for name in ("id-clip", "id-embedding"):
        done = launch(name, sources.root / name)
        assert done.returncode == 0, done.stderr[-2000:]
        assert read_checkpoint(sources.root / name / loop.CHECKPOINT)["step"] == 6
