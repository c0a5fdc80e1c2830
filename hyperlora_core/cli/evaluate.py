"""hyperlora evaluate: how well the method works, measured on people whom no network has seen."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import HyperLoRAError
from ..evaluate.protocol import FULL, SHIPPED, Method, Protocol, chosen_methods, load_protocol


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/evaluate"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--people", type=int, default=100, metavar="N", help="held-out people (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, prompts and noise (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help='default: all of the protocol; "none" always')
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another HyperLoRA trained for the demo, as a row of its own; may be repeated",
    )
    parser.add_argument(
        "--as",
        nargs="+",
        default=[FULL],
        dest="ways",
        metavar="NAME",
        help=f"the methods by which --checkpoint's are measured (default: {FULL})",
    )
    parser.add_argument("--protocol", type=Path, default=SHIPPED, metavar="FILE", help="prompts and methods, as JSON")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--id-weight", type=float, help="instead of the methods' own, where that isn't 0")
    parser.add_argument("--base-weight", type=float, help="likewise")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures at once (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--overwrite", action="store_true", help="paint again what was painted with other settings")


def run(arguments: Namespace) -> int:
    """Run the command."""
    from ..evaluate.paint import Painter
    from ..evaluate.people import drawn_people
    from ..evaluate.report import write_report
    from ..evaluate.run import Evaluation
    from ..locate import demo_folder
    from ..pipeline import load_pipeline

    if min(arguments.steps, arguments.batch) < 1:
        raise HyperLoRAError(f"--steps {arguments.steps} and --batch {arguments.batch} must be at least 1.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    protocol = load_protocol(arguments.protocol)
    methods = _methods(arguments, protocol)
    encoders, instruments = _open(methods, arguments.device)
    painter = Painter(load_pipeline(demo_folder(), device=arguments.device), arguments.steps, arguments.cfg)
    with _bars() as progress:
        people = drawn_people(
            arguments.people,
            max(1, *(method.photos for method in methods)),
            protocol.prompts,
            protocol.chances,
            arguments.seed,
            lambda done, total: progress("drawing people", done, total),
        )
        evaluation = Evaluation(
            people,
            methods,
            protocol,
            painter,
            encoders,
            instruments,
            arguments.out,
            arguments.seed,
            arguments.batch,
            arguments.overwrite,
        )
        results = evaluation.run(progress)
    settings = {"seed": arguments.seed, **painter.settings, "methods": [vars(method) for method in methods]}
    print(write_report(arguments.out, results, protocol.comparisons, settings, arguments.seed))
    print(f"Written to {arguments.out}: table.md, results.json, results.csv, grid_1.png ..., pictures/")
    return 0


def _methods(arguments: Namespace, protocol: Protocol) -> list[Method]:
    checkpoints = {}
    for text in arguments.checkpoint:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise HyperLoRAError(f"--checkpoint {text} isn't NAME=FOLDER.")
        checkpoints[name] = folder
    return chosen_methods(
        protocol, arguments.methods, checkpoints, arguments.ways, arguments.id_weight, arguments.base_weight
    )


def _open(methods: list[Method], device: str) -> tuple[dict, "object"]:
    """The encoders of all checkpoints, on the same face pack and CLIP tower, and the measuring instruments."""
    from ..checkpoint import load_hyperlora
    from ..encode import PhotoEncoder
    from ..evaluate.attributes import AttributeReader
    from ..evaluate.instruments import ATTRIBUTE_MEASURE, FACE_MEASURE, Instruments, MeasuringNetwork
    from ..locate import DEMO, demo_folder, open_encoder

    demo = open_encoder(DEMO, device=device)
    encoders = {DEMO: demo}
    for checkpoint in {method.checkpoint for method in methods} - {DEMO}:
        encoders[checkpoint] = PhotoEncoder(load_hyperlora(checkpoint, device), demo.faces, demo.vision)
    measuring = MeasuringNetwork(demo_folder() / FACE_MEASURE, demo.faces)
    attributes = AttributeReader(demo_folder() / ATTRIBUTE_MEASURE)
    return encoders, Instruments(measuring, attributes, demo.vision)


@contextmanager
def _bars() -> Iterator:
    """Progress as a bar per stage, with the time left; a line a minute where nobody watches, as in a log."""
    bar: tqdm | None = None
    shown = ""

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal bar, shown
        if stage != shown:
            if bar is not None:
                bar.close()
            seconds = 1 if sys.stderr.isatty() else 60
            bar, shown = tqdm(total=total, desc=stage, mininterval=seconds, maxinterval=600, smoothing=0.1), stage
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()
