"""hyperlora batch: identities and LoRAs of many people, stopped and resumed at will."""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace

from tqdm import tqdm

from ..batch.journal import KINDS
from ..batch.run import Summary, run_batch
from ..batch.write import BatchConfig
from .options import add_lora_arguments, add_model_arguments, add_reading_arguments, chosen_models, encode_options
from .progress import following

SHOWN = 5  # people whose files are called otherwise
MOST_WORKERS = 8  # by default; each needs the memory of PyTorch and a face pack

STOPPED = "Stopped; nothing is lost. The same command goes on."


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("photos", metavar="PHOTOS_FOLDER", help="holds a folder of photos for each person")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where files, journal and report go")
    parser.add_argument(
        "--write", type=_kinds, default=KINDS, metavar="KINDS", help=f"of {','.join(KINDS)} (default: both)"
    )
    add_lora_arguments(parser)
    parser.add_argument("--retry", action="store_true", help="look again at people who failed in an earlier run")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(MOST_WORKERS, os.cpu_count() or 1),
        metavar="N",
        help="processes that look for faces (default: %(default)s)",
    )
    parser.add_argument(
        "--group",
        type=int,
        default=BatchConfig.group,
        metavar="N",
        help="photos that are encoded, and people whose LoRAs are mixed, at once (default: %(default)s)",
    )
    parser.add_argument("--ray", metavar="ADDRESS", help='work on this Ray cluster; "local" starts one here')
    add_reading_arguments(parser)
    add_model_arguments(parser)


def run(arguments: Namespace) -> int:
    """Run the command; 0 when all people are done, 1 when some failed."""
    config = BatchConfig(
        arguments.write,
        encode_options(arguments),
        arguments.naming,
        arguments.base_weight,
        arguments.group,
    )
    # the delay keeps the bar out of an error's way until there is work
    with tqdm(desc="photos", unit="photo", delay=0.1, mininterval=1 if sys.stderr.isatty() else 60) as bar:
        follow = following(bar)
        summary = run_batch(
            arguments.photos,
            arguments.out,
            chosen_models(arguments),
            config,
            arguments.workers,
            arguments.retry,
            arguments.ray,
            lambda done, total, people, failed: follow(done, total, people=people, failed=failed),
        )
    _tell(summary, arguments.out)
    return 1 if summary.failed else 0


def _tell(summary: Summary, out: str) -> None:
    earlier = f", {summary.earlier} of them from earlier runs" if summary.earlier else ""
    print(f"{summary.done} of {summary.done + summary.failed} people are in {out}{earlier}")
    if summary.failed:
        print(f"{summary.failed} failed; --retry looks at them again")
    for person, file in list(summary.renamed.items())[:SHOWN]:
        print(f"{person!r}: the files are called {file!r}, since the name is another's or does not do for a file")
    if len(summary.renamed) > SHOWN:
        print(f"and so for {len(summary.renamed) - SHOWN} more")
    print(f"Each person: {summary.report}")


def _kinds(text: str) -> tuple[str, ...]:
    asked = [word.strip() for word in text.split(",")]
    if unknown := [word for word in asked if word not in KINDS]:
        raise ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)
