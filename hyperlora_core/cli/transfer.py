"""hyperlora transfer: LoRA files for one base model in, LoRA files for another out."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from tqdm import tqdm

from ..base_layers import FileLayers
from ..errors import HyperLoRAError
from ..files import written_aside
from ..lora import load_lora, save_lora
from ..metadata import kept
from ..transfer import DIRECTIONS, THRESHOLD, Bridge, transfer
from .options import add_device_argument, add_naming_argument
from .progress import following


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("loras", nargs="+", type=Path, metavar="LORA", help="LoRA files in kohya naming")
    parser.add_argument(
        "--source",
        required=True,
        type=Path,
        metavar="PATH",
        help="the SDXL model that they were made for: file or folder",
    )
    parser.add_argument(
        "--target",
        required=True,
        type=Path,
        metavar="PATH",
        help="the SDXL model, whole or pruned, that they are wanted for",
    )
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="PATH", help="the file to write; for several LoRAs a folder"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="S",
        help="leave out layers less alike than this, from 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--directions",
        type=float,
        default=DIRECTIONS,
        metavar="SHARE",
        help="share of the target's directions that the change may use; 1: all (default: %(default)s)",
    )
    add_naming_argument(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a line for every layer into this text file")
    add_device_argument(parser)


def run(arguments: Namespace) -> int:
    """Run the command."""
    outputs = _outputs(arguments.loras, arguments.output)
    source, target = FileLayers(arguments.source), FileLayers(arguments.target)
    bridge, reports = Bridge(arguments.directions), []
    for path, output in zip(arguments.loras, outputs, strict=True):
        lora = load_lora(path)
        with tqdm(desc=path.stem, unit="layer", disable=None) as bar:
            moved = transfer(lora, source, target, arguments.threshold, bridge, arguments.device, following(bar))
        print(moved.summary, *moved.left_out, sep="\n")
        reports.append(f"{path}\n{moved.report}\n")
        save_lora(moved.lora, output, arguments.naming, kept(path) | {"hyperlora.moved_to": arguments.target.name})
        print(f"LoRA: {output}")
    if arguments.report is not None:
        with written_aside(arguments.report) as aside:
            aside.write_text("\n".join(reports), encoding="utf-8")
        print(f"Report: {arguments.report}")
    return 0


def _outputs(loras: list[Path], output: Path) -> list[Path]:
    if len(loras) == 1 and output.suffix == ".safetensors":
        return [output]
    if output.suffix == ".safetensors":
        raise HyperLoRAError(f"{len(loras)} LoRAs don't go into one file, {output}: name a folder.")
    outputs = [output / path.name for path in loras]
    if len(set(outputs)) < len(outputs) or any(path.resolve() in map(Path.resolve, loras) for path in outputs):
        raise HyperLoRAError(
            f"Two LoRAs would have the same file in {output}: move them one by one, or choose another folder."
        )
    return outputs
