"""Speed, memory and their floors: `python -m benchmarks`, explained in docs/benchmarks.md.

    python -m benchmarks                                    the demo's size
    python -m benchmarks --published --folder FOLDER        the published shape, untrained models written into FOLDER
    python -m benchmarks --comfyui ComfyUI                  also in a real ComfyUI

The table goes to stdout; report.json and report.png into --out. Exit status: 0, 1 where a budget is missed (published
shape) or a group failed, 2 for bad input, 130 after Ctrl-C.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from hyperlora_core import HyperLoRAError
from hyperlora_core.cli.progress import following
from hyperlora_core.locate import DEMO_FACES, demo_folder

from .speed import apply, faces, generate, importing, in_comfyui, load, people, report, sampling
from .speed.bench import Bench
from .speed.ceilings import PRECISIONS, measure_ceilings
from .speed.machine import describe_machine
from .speed.models import demo_models, published_models

GROUPS: dict[str, ModuleType] = {
    "load": load,
    "generate": generate,
    "people": people,
    "faces": faces,
    "apply": apply,
    "sampling": sampling,
    "import": importing,
    "comfyui": in_comfyui,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--published", action="store_true", help="untrained models of the published shape (3.7 GB)")
    parser.add_argument(
        "--folder", type=Path, help="where these are kept and found again (default: deleted afterwards)"
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="these groups, instead of all")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help="default: fp32 on a CPU, fp16 on a GPU; the first counts where one does",
    )
    parser.add_argument("--people", type=int, nargs="+", default=[16], help="at once; 16 256 takes longer")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--latent", type=int, help="side in latents of the sampling step's picture, 1/8 of its pixels")
    parser.add_argument("--face-pack", type=Path, help="a real one, such as antelopev2 (default: the demo's)")
    parser.add_argument(
        "--photo", type=Path, help="in which it finds a face (default: a drawn one, for the demo's pack)"
    )
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder: measure in it too")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.repetitions < 1 or min(options.people) < 1:
        parser.error("--repetitions and --people must be at least 1")
    if options.comfyui and not (options.comfyui / "comfy").is_dir():
        parser.error(f"{options.comfyui} is not ComfyUI's folder: it has no folder comfy")
    return options


def choose_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def run(options: argparse.Namespace) -> Bench:
    """Measure, and write what was measured."""
    device = choose_device(options.device)
    machine = describe_machine(device)
    default_latent = (32 if device.type == "cpu" else 128) if options.published else 16
    with ExitStack() as stack:
        checkpoint, clip = models(options, stack)
        bar = stack.enter_context(tqdm(total=len(options.only or GROUPS), unit="group", disable=None))

        def starting(what: str) -> None:
            bar.set_description(what)

        starting("ceilings")
        bench = Bench(
            device=device,
            precisions=options.precision or (["fp32"] if device.type == "cpu" else ["fp16"]),
            repetitions=options.repetitions,
            published=options.published,
            checkpoint=checkpoint,
            clip=clip,
            face_pack=options.face_pack or demo_folder() / DEMO_FACES,
            photo=options.photo,
            people=options.people,
            latent=options.latent or default_latent,
            comfyui=options.comfyui,
            ceilings=measure_ceilings(device),
            starting=starting,
        )
        for name in options.only or GROUPS:
            try:
                GROUPS[name].measure(bench)
            except HyperLoRAError as error:
                bench.failed[name] = str(error)
            gc.collect()  # models hold themselves; the next group needs the room
            bar.update()
    for name, reason in bench.failed.items():
        print(f"benchmarks: {name} failed: {reason}", file=sys.stderr)
    if not bench.rows:
        raise HyperLoRAError("Nothing could be measured.")
    report.write_json(bench, machine, options.out / "report.json")
    title = f"{machine['processor']}, {machine['device']}, {'published' if options.published else 'demo'} shape, {machine['date']}"
    report.draw(bench, title, options.out / "report.png")
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    print(f"\n{report.ceilings(bench)}\n\n{report.table(bench)}\n\nWritten: {options.out}/report.json, report.png")
    return bench


def models(options: argparse.Namespace, stack: ExitStack) -> tuple[Path, Path]:
    """Checkpoint and CLIP tower; those written into a folder that nobody named go with `stack`."""
    if not options.published:
        return demo_models()
    folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
    return published_models(folder, _writing(stack))


def _writing(stack: ExitStack) -> Callable[[int, int], None]:
    bar = tqdm(desc="writing untrained models", unit="B", unit_scale=True, disable=None)
    stack.callback(bar.close)
    return following(bar)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        bench = run(options)
    except HyperLoRAError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    return 1 if bench.failed or any(row.kept is False for row in bench.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
