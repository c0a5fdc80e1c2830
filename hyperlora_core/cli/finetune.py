"""hyperlora finetune: a LoRA file and more photos of its person in, a LoRA file out."""

import dataclasses
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import HyperLoRAError
from ..lora import ALPHA, load_lora, pairs, save_lora
from ..metadata import kept
from ..train import finetune
from ..train.config import config_path
from .train import add_run_arguments, chosen_config, chosen_device, train_with_bar


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("lora", type=Path, metavar="LORA", help="a person's LoRA file, in kohya naming")
    parser.add_argument(
        "--photos",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="photos of this person, as hyperlora prepare (or hyperlora train demo-data) wrote them",
    )
    parser.add_argument(
        "--person", type=int, metavar="NUMBER", help="whose photos, where FOLDER has drawn ones of several people"
    )
    parser.add_argument(
        "--base", required=True, type=Path, metavar="PATH", help="the SDXL model, a file or a diffusers folder"
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="the LoRA file to write (.safetensors); checkpoint, losses and samples go into a folder beside it",
    )
    parser.add_argument(
        "--config",
        default="sdxl",
        metavar="FILE",
        help="a TOML file, or a shipped config: sdxl, gpu, cpu (default: sdxl)",
    )
    add_run_arguments(parser)


def run(arguments: Namespace) -> int:
    """Run the command."""
    device = chosen_device(arguments)
    config = chosen_config(config_path("finetune", arguments.config, device), finetune.Config, arguments)
    lora, out = load_lora(arguments.lora), arguments.out
    if out.exists() and out.samefile(arguments.lora):
        raise HyperLoRAError(f"{out} is the LoRA itself, which stays as it is: name another file (--out).")
    silent = sum(pair.key + ALPHA not in lora for pair in pairs(lora))
    if silent:
        print(f"{arguments.lora} has no alpha for {silent} layers: as everywhere, it counts as their rank.")
    task = finetune.make_task(config, lora, arguments.photos, arguments.base, arguments.person)
    config = dataclasses.replace(config, origin=task.origin)
    folder = out.with_name(f"{out.stem}_training")
    status = train_with_bar(task, config, folder, device, arguments.resume, "finetune")
    if not status:
        metadata = kept(arguments.lora) | finetune.what_was_done(config, len(task.rows), arguments.base)
        save_lora(finetune.tuned(lora, folder), out, metadata=metadata)
        print(f"LoRA: {out}")
    return status
