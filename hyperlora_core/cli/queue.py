"""hyperlora queue: a workflow for every person, prompt and seed, on ComfyUI servers; stopped and resumed at will."""

import asyncio
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import HyperLoRAError
from ..queue.jobs import Inputs, Job, parse_seeds, plan_jobs, read_people, read_prompts
from ..queue.watch import Options, Watch
from ..queue.workflow import PHOTO, PROMPT, SEED, Workflow, find_inputs, read_workflow, title
from .progress import following

if TYPE_CHECKING:
    from ..queue.run import Summary

SHOWN = 5  # sentences about photos, and reasons for failures
SERVER = "http://127.0.0.1:8188"
ROLES = {"photo": PHOTO, "prompt": PROMPT, "seed": SEED}

STOPPED = "Stopped; nothing is lost, and nothing is left in the queue. The same command goes on."


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "workflow", metavar="WORKFLOW", help="a workflow in API format (File > Export (API) in ComfyUI)"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where pictures, index.csv and journal go")
    parser.add_argument(
        "--server",
        nargs="+",
        action="extend",
        metavar="URL",
        help=f"one server or several; each takes jobs as it gets on (default: {SERVER})",
    )
    varied = parser.add_argument_group("what varies (one of these at least; the rest stays as in the workflow)")
    varied.add_argument(
        "--photos", metavar="FOLDER", help="each folder in it is a person, and so is each photo that lies there"
    )
    varied.add_argument("--prompts", metavar="FILE", help="a text file with a prompt on each line")
    varied.add_argument("--seeds", metavar="SEEDS", help="1-4, or 1,2,10-20")
    places = parser.add_argument_group(
        'where it goes: "Title.input", "id.input" or "Title" of a node; given again, several inputs'
    )
    for what, text in (
        ("photo", "default: Load Image; given twice, a person's first photo goes to one and the second to the other"),
        ("prompt", "default: Trigger Prompt, or the positive prompt"),
        ("seed", "default: the sampler's"),
    ):
        places.add_argument(f"--{what}-input", action="append", default=[], metavar="INPUT", help=text)
    conduct = parser.add_argument_group("failures")
    conduct.add_argument(
        "--tries",
        type=_at_least_one,
        default=Options().tries,
        metavar="N",
        help="of a job that fails (default: %(default)s)",
    )
    conduct.add_argument(
        "--ahead",
        type=_at_least_one,
        default=Options().ahead,
        metavar="N",
        help="jobs on a server at once, so that it never waits for the next (default: %(default)s)",
    )
    conduct.add_argument(
        "--patience",
        type=float,
        default=Options().patience,
        metavar="SECONDS",
        help="how long a server may be away, as when it restarts (default: %(default).0f)",
    )


def run(arguments: Namespace) -> int:
    """Run the command; 0 when all jobs are done, 1 when some failed."""
    from ..queue.client import server_url

    servers = [server_url(text) for text in arguments.server or [SERVER]]
    workflow = read_workflow(arguments.workflow)
    inputs, jobs = _plan(arguments, workflow)
    screen = _Screen(len(servers))
    try:
        summary = asyncio.run(_queue(workflow, inputs, jobs, servers, arguments, screen))
    except asyncio.CancelledError as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        screen.close()
    earlier = f", {summary.earlier} of them from earlier runs" if summary.earlier else ""
    print(f"{summary.done} of {len(jobs)} jobs are done{earlier}: {arguments.out}")
    if summary.failed:
        reasons = Counter(summary.failed.values()).most_common()
        for reason, count in reasons[:SHOWN]:
            print(f"{count} failed: {reason}")
        if len(reasons) > SHOWN:
            print(f"and {len(reasons) - SHOWN} other reasons")
        print("The same command tries them again.")
    print(f"Each picture: {summary.index}")
    return 1 if summary.failed else 0


def _plan(arguments: Namespace, workflow: Workflow) -> tuple[Inputs, list[Job]]:
    """Which inputs vary, and the jobs; says what goes where."""
    given = vars(arguments)
    if not (arguments.photos or arguments.prompts or arguments.seeds):
        raise HyperLoRAError("Nothing varies: give --photos, --prompts or --seeds.")
    places = {}
    for what, role in ROLES.items():
        named = given[f"{what}_input"]
        if named and not given[f"{what}s"]:
            raise HyperLoRAError(f"{role.option} says where it goes, but not what: give --{what}s too.")
        places[what] = find_inputs(workflow, role, named) if given[f"{what}s"] else []
        for place in places[what]:
            print(f"{what + 's':<8} -> {title(workflow, place.node)} ({place.node}).{place.name}")
    inputs = Inputs(*places.values())
    prompts = read_prompts(arguments.prompts) if arguments.prompts else []
    seeds = parse_seeds(arguments.seeds) if arguments.seeds else []
    people = []
    if arguments.photos:
        with tqdm(desc="reading photos", unit="person", delay=1, leave=False, disable=None) as bar:
            people, notes = read_people(arguments.photos, len(inputs.photos), following(bar))
        for note in notes[:SHOWN]:
            print(note)
        if len(notes) > SHOWN:
            print(f"and {len(notes) - SHOWN} more such notes")
    return inputs, plan_jobs(workflow, inputs, people, prompts, seeds)


async def _queue(
    workflow: Workflow, inputs: Inputs, jobs: list[Job], servers: list[str], arguments: Namespace, screen: "_Screen"
) -> "Summary":
    """Run the queue; the first Ctrl-C (or a polite kill) cleans up, the second leaves at once."""
    from ..queue.run import run_queue

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in signals}

    def stop(*_) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(task.cancel)

    for number in signals:
        signal.signal(number, stop)
    try:
        options = Options(arguments.tries, arguments.ahead, arguments.patience)
        return await run_queue(workflow, inputs, jobs, servers, arguments.out, options, screen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Screen(Watch):
    """The queue's progress: a bar for all and a line for each server; in a log, a line for each job."""

    def __init__(self, servers: int):
        self.live = sys.stderr.isatty()
        self.bar = tqdm(desc="jobs", unit="job", position=servers, disable=not self.live, dynamic_ncols=True)
        self.free = list(reversed(range(servers)))
        self.lines: dict[str, tqdm] = {}
        self.done = self.total = self.lost = 0

    def close(self) -> None:
        for bar in (*self.lines.values(), self.bar):
            bar.close()

    def began(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.bar.total, self.bar.initial, self.bar.n = total, done, done
        self.bar.refresh()
        if not self.live:
            print(f"{total} jobs, {done} of them done in earlier runs", flush=True)

    def progress(self, server: str, job: Job, node: str, value: float, total: float) -> None:
        if not self.live:
            return
        if server not in self.lines:
            self.lines[server] = tqdm(position=self.free.pop(), leave=False, bar_format="{desc}", dynamic_ncols=True)
        steps = f" {value:.0f}/{total:.0f}" if total > 1 else ""
        self.lines[server].set_description_str(f"{server.partition('://')[2]}  {job.name}  {node}{steps}")

    def finished(self, job: Job, files: list[str], similarity: float | None, seconds: float | None) -> None:
        self.done += 1
        self.bar.update()
        if not self.live:
            like = "" if similarity is None else f"  similarity {similarity:.2f}"
            took = "" if seconds is None else f"  {seconds:.1f} s"
            print(f"[{self.done}/{self.total}] {', '.join(files)}{like}{took}", flush=True)

    def failed(self, job: Job, message: str, again: bool) -> None:
        if not again:
            self.lost += 1
            self.bar.set_postfix(failed=self.lost)
        self.said(f"{job.name} failed{', and is tried again' if again else ''}: {message}")

    def said(self, message: str) -> None:
        if self.live:
            self.bar.write(message, file=sys.stderr)
        else:
            print(message, flush=True)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)
