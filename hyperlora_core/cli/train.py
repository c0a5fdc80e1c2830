"""hyperlora train: one stage of training, stopped and resumed at will."""

import dataclasses
import importlib
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from ..errors import HyperLoRAError
from ..locate import DEMO_CLIP, DEMO_FACES, demo_folder
from ..train.config import Config, config_path, load_config
from ..train.sources import Sources
from .progress import following

if TYPE_CHECKING:
    from ..train import loop

HYPERLORA = ("base-lora", "id-clip", "id-embedding")  # the paper's stages
# stage: its module in hyperlora_core.train and its folder in --out
STAGES = {
    "demo-detector": ("demo_face", "detector"),
    "demo-landmarks": ("demo_face", "landmarks"),
    "demo-recognition": ("demo_face", "recognition"),
    "demo-measuring": ("demo_face", "measuring"),
    "demo-attributes": ("demo_attributes", "attributes"),
    "demo-data": ("data", "data"),
    "demo-faces": ("demo_faces", "data"),
    "demo-vae": ("demo_vae", "vae"),
    "demo-clip": ("demo_clip", "clip"),
    "demo-unet": ("demo_unet", "unet"),
    "demo-style": ("demo_unet", "style"),
    "base-lora": ("stage", "base-lora"),
    "id-people": ("stage", "id-people"),
    "id-reader": ("reader", "id-reader"),
    "id-clip": ("stage", "id-clip"),
    "id-embedding": ("stage", "id-embedding"),
    "id-words": ("stage", "id-words"),
    "id-words-reader": ("reader", "id-words-reader"),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("stage", choices=list(STAGES), help="in this order; docs/training.md tells what each does")
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file, or a shipped config: gpu, cpu, sdxl (default: as the device)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/train"),
        metavar="FOLDER",
        help="where all stages keep their work (default: %(default)s)",
    )
    parser.add_argument("--name", help="the stage's folder in --out, for a variant (default: the stage's name)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="training pictures, of demo-data or of prepare (default: --out/data)",
    )
    parser.add_argument(
        "--base", type=Path, metavar="PATH", help="the SDXL model, a file or a diffusers folder (default: the demo's)"
    )
    parser.add_argument("--clip", type=Path, metavar="PATH", help="the CLIP image tower (default: the demo's)")
    parser.add_argument(
        "--faces",
        type=Path,
        metavar="FOLDER",
        help="the face pack that demo-faces and PuLID's loss run (default: the demo's)",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes that draw (default: %(default)s)"
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="don't train: write the trained model into this models/demo folder",
    )
    parser.add_argument(
        "--estimate",
        type=int,
        nargs="*",
        metavar="PX",
        help="don't train: say what this stage would need with SDXL, in memory and time, for photos of these sides "
        "(default: 512 768 1024; of the config sdxl)",
    )


def add_run_arguments(parser: ArgumentParser) -> None:
    """How long the training loop runs, and on what."""
    parser.add_argument("--steps", type=int, metavar="N", help="steps in all, instead of the config's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on where the same command was stopped")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")


def run(arguments: Namespace) -> int:
    """Run the command."""
    module_name, name = STAGES[arguments.stage]
    module = importlib.import_module(f"...train.{module_name}", __name__)
    name = arguments.name or name
    demo = demo_folder()
    sources = Sources(
        root=arguments.out,
        data=arguments.data or arguments.out / "data",
        base=arguments.base or demo,
        clip=arguments.clip or demo / DEMO_CLIP,
        faces=arguments.faces or demo / DEMO_FACES,
    )
    device = chosen_device(arguments)
    if arguments.estimate is not None:
        return _estimate(arguments.stage, arguments.config or "sdxl", arguments.estimate)
    if arguments.stage == "demo-faces":
        return _embed(module, sources.data, sources.faces, arguments.workers)
    path = config_path(arguments.stage, arguments.config, device)
    if arguments.stage == "demo-data":
        return _draw(module, load_config(path, module.DataConfig), sources.data, arguments.workers)
    if arguments.export:
        print(module.export(sources, name, arguments.export))
        return 0
    config = chosen_config(path, module.Config, arguments)
    if module_name == "demo_face" and f"demo-{config.faces.network}" != arguments.stage:
        raise HyperLoRAError(
            f"{path} is a config of demo-{config.faces.network}, not of {arguments.stage}: take that one's."
        )
    if hasattr(module, "prepare"):  # what a stage draws for itself
        with _bar(None, "portraits", "person") as bar:
            module.prepare(config, sources, arguments.workers, following(bar))
    task = module.make_task(config, sources, name)
    return train_with_bar(task, config, arguments.out / name, device, arguments.resume, arguments.stage)


def chosen_device(arguments: Namespace) -> str:
    """The device that `add_run_arguments` asked for, found where it says auto; sets the threads."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device != "auto":
        return arguments.device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def chosen_config(path: Path, kind: type[Config], arguments: Namespace) -> Config:
    """The config at `path`, with the steps that `add_run_arguments` asked for."""
    config = load_config(path, kind)
    if arguments.steps is None:
        return config
    if arguments.steps < 1:
        raise HyperLoRAError(f"--steps {arguments.steps} trains nothing. Give 1 or more.")
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=arguments.steps))


def _estimate(stage: str, config: str, sides: list[int]) -> int:
    from ..train import estimate
    from ..train.stage import Config

    if stage not in HYPERLORA:
        raise HyperLoRAError(f"--estimate is for {', '.join(HYPERLORA)}: {stage} trains no model on SDXL.")
    wrong = [side for side in sides if side < 64 or side % 8]
    if wrong:
        raise HyperLoRAError(f"--estimate {wrong[0]} is no side of a photo for SDXL. Give multiples of 8 from 64.")
    with _bar(None, "counting", "size") as bar:
        estimates = estimate.estimate(
            load_config(config_path(stage, config, "cpu"), Config), sides or estimate.SIDES, progress=following(bar)
        )
    print(estimate.report(estimates))
    return 0


def _embed(module: "object", data: Path, pack: Path, workers: int) -> int:
    with _bar(None, "faces", "portrait") as bar:
        missed = module.embed_faces(data, pack, workers, following(bar))
    print(f"No face was found in {missed} of {bar.total} portraits; HyperLoRA's stages leave them out.")
    return 0


def _draw(module: "object", config: "object", folder: Path, workers: int) -> int:
    with _bar(config.people, "portraits", "person") as bar:
        module.draw_data(folder, config, workers, lambda done, _total: bar.update(done - bar.n))
    print(f"{config.people * config.scenes} portraits of {config.people} people in {folder}")
    return 0


def train_with_bar(task: "loop.Task", config: "loop.Config", folder: Path, device: str, resume: bool, what: str) -> int:
    """The training loop with a progress bar; returns the exit status, 130 when it was stopped before its last step."""
    from ..train.loop import train

    with _bar(config.loop.steps, what, "step") as bar:

        def progress(step: int, _steps: int, losses: dict[str, float]) -> None:
            if not losses:
                bar.initial = bar.last_print_n = bar.n = step  # resumed: the time left counts new steps only
            bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()}, refresh=False)
            bar.update(step - bar.n)

        reached = train(task, config, folder, device, resume, progress)
    if reached < config.loop.steps:
        print(f"Stopped at step {reached} of {config.loop.steps}. Go on with: --resume")
        return 130
    print(f"{reached} steps done: {folder}")
    return 0


def _bar(total: int | None, what: str, unit: str) -> tqdm:
    """A progress bar with the time left; a line a minute where nobody watches, as in a log."""
    return tqdm(total=total, desc=what, unit=unit, mininterval=1 if sys.stderr.isatty() else 60, maxinterval=600)
