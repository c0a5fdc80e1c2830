"""hyperlora quantize: a checkpoint in, the same with its basis in 8 bits out."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from ..checkpoint import find_parts, load_hyperlora, write_eight_bit
from ..eight_bit import checkpoint_errors
from ..locate import DEFAULT, find_checkpoint
from .progress import following


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "checkpoint", nargs="?", default=DEFAULT, help=f"fidelity, edit, demo, or a path (default: {DEFAULT})"
    )
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="PATH", help="the .safetensors file or the folder to write"
    )
    parser.add_argument("--models-folder", metavar="DIR", help="ComfyUI's models folder (default: found)")


def run(arguments: Namespace) -> int:
    """Run the command."""
    path = find_checkpoint(arguments.checkpoint, arguments.models_folder)
    with tqdm(desc="basis", unit="tensor", disable=None) as bar:
        write_eight_bit(path, arguments.output, following(bar))
    errors = checkpoint_errors(load_hyperlora(arguments.output), load_hyperlora(path))
    worst = max(errors, key=errors.__getitem__)
    mean = sum(errors.values()) / len(errors)
    print(f"Checkpoint: {arguments.output}, {_size(arguments.output):.2f} GB instead of {_size(path):.2f} GB")
    print(f"A layer's change is off by {mean:.2%} on average, by {errors[worst]:.2%} at most ({worst}).")
    return 0


def _size(path: Path) -> float:
    """GB of a checkpoint."""
    return sum(file.stat().st_size for file in {file for file, _ in find_parts(path).files.values()}) / 1e9
