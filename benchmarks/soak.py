"""Whether a ComfyUI server's memory stays flat while the person changes for every picture.

    python -m benchmarks.soak --comfyui ComfyUI --generations 500

A real ComfyUI on the CPU, the demo's models; each generation another person (photo to identity to LoRA to picture), all
merged into the weights, then all beside the layers, then for the prompt only, and again. After each, what the operating
system counts of the server's process. The table goes to stdout; soak.json and soak.png into --out. Exit status: 0 flat, 1
not, or too few generations to tell, 2 for bad input, 130 after Ctrl-C.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from hyperlora_core import HyperLoRAError
from hyperlora_core.cli.progress import following
from hyperlora_core.demo.portraits import HELD_OUT
from hyperlora_core.files import written_aside
from hyperlora_core.packages import require

from .server import own_server, photo_of
from .speed.machine import ROOT, describe_machine
from .speed.memory import Memory, memory_of
from .speed.report import figure

MODES = ("merge", "bypass", "guide")
WARM_UP = 0.2  # share of the generations in which models are loaded and allocators fill up
FEWEST = 40  # generations after these, from which a slope says something
MOST_SLOPE = 0.05e6  # bytes for each generation: a person's two LoRAs of the demo have twenty times as many
MOST_GROWTH = 32e6  # bytes between the first and the last quarter
ROWS = 10
MB = 1e6


class Sample(NamedTuple):
    """After a generation: seconds that it took, and the server's memory."""

    seconds: float
    memory: Memory


class Verdict(NamedTuple):
    """Own memory after the warm-up: bytes a generation (median of all pairs' slopes), and the last quarter's median less
    the first's. `flat` is None where there are too few generations to tell."""

    slope: float
    growth: float
    flat: bool | None

    def __str__(self) -> str:
        bounds = (
            f"{self.slope / MB:+.3f} MB a generation, {self.growth / MB:+.1f} MB from the first to the last quarter"
        )
        if self.flat is None:
            return f"Too few generations to tell: {bounds}"
        limits = f"at most {MOST_SLOPE / MB:g} and {MOST_GROWTH / MB:g}"
        return f"{'Flat' if self.flat else 'NOT FLAT'}: {bounds} ({limits})"


def judge(own: Sequence[int]) -> Verdict:
    """Is a server's own memory after each generation, in bytes, flat once it is warm?"""
    values = np.asarray(own[int(WARM_UP * len(own)) :], float)
    first, second = np.triu_indices(len(values), k=1)
    slope = float(np.median((values[second] - values[first]) / (second - first))) if len(first) else 0.0
    quarter = max(1, len(values) // 4)
    growth = float(np.median(values[-quarter:]) - np.median(values[:quarter]))
    enough = len(values) >= FEWEST
    return Verdict(slope, growth, slope <= MOST_SLOPE and growth <= MOST_GROWTH if enough else None)


def workflow(photo: str, mode: str, seed: int) -> dict:
    """The demo's, so changed."""
    graph = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))
    changes = {
        "LoadImage": {"image": photo},
        "KSampler": {"seed": seed},
        "HyperLoRAApply": {"mode": mode},
    }
    for node in graph.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    return graph


def soak(server, generations: int, people: int, progress: Callable[..., None]) -> list[Sample]:
    """Generate in a server (tests/host/comfyui.py), the people in turn.

    `progress(done, generations, MB=...)` may raise to stop. Raises HyperLoRAError when a generation fails.
    """
    photos = [server.upload(photo_of(number), f"soak_{number}.png") for number in range(people)]
    samples = []
    for number in range(generations):
        start = time.perf_counter()
        mode = MODES[number // people % len(MODES)]  # everybody in one, then everybody in the next
        result = server.run(workflow(photos[number % people], mode, number))
        if result.error:
            raise HyperLoRAError(f"Generation {number + 1} failed: {result.error}")
        server.post("/history", {"clear": True})  # the server's own records, which it keeps for its users
        samples.append(Sample(time.perf_counter() - start, memory_of(server.process.pid)))
        progress(number + 1, generations, MB=round(samples[-1].memory.own / MB))
    return samples


def table(samples: Sequence[Sample]) -> str:
    """Markdown, a row for each tenth."""
    lines = ["| generations | seconds each | RSS | PSS | own |", "|---|---|---|---|---|"]
    ends = sorted({round(len(samples) * (row + 1) / ROWS) for row in range(ROWS)} - {0})
    for begin, end in zip([0, *ends], ends, strict=False):
        part = samples[begin:end]
        memory = [
            "" if None in column else figure(float(np.median(column)) / 1e9, "GB")
            for column in zip(*(sample.memory for sample in part), strict=True)
        ]
        seconds = figure(float(np.median([sample.seconds for sample in part])), "s")
        lines.append(f"| {begin + 1} to {end} | {seconds} | {' | '.join(memory)} |")
    return "\n".join(lines)


def draw(samples: Sequence[Sample], verdict: Verdict, path: Path) -> None:
    """Memory over generations."""
    chart = require("matplotlib.figure", "Drawing the soak").Figure(figsize=(9, 5), layout="constrained")
    axes = chart.subplots()
    numbers = range(1, len(samples) + 1)
    for name, label in (("rss", "RSS"), ("pss", "PSS"), ("own", "own")):
        values = [getattr(sample.memory, name) for sample in samples]
        if None not in values:
            axes.plot(numbers, np.array(values) / MB, label=label)
    axes.axvspan(0, WARM_UP * len(samples), color="0.92", label="warming up")
    axes.set(
        xlabel="generations, each of another person", ylabel="MB in main memory", title=str(verdict), ylim=(0, None)
    )
    axes.legend()
    axes.grid(alpha=0.3)
    with written_aside(path) as aside:
        chart.savefig(aside, format="png", dpi=110)


def run(options: argparse.Namespace) -> Verdict:
    """Soak, and write what was seen."""
    machine = describe_machine(torch.device("cpu"))
    with own_server(options.comfyui) as server, tqdm(unit="picture", disable=None) as bar:
        samples = soak(server, options.generations, options.people, following(bar))
    verdict = judge([sample.memory.own for sample in samples])
    content = {
        "machine": machine,
        "generations": options.generations,
        "people": options.people,
        "bytes a generation": verdict.slope,
        "bytes of growth": verdict.growth,
        "flat": verdict.flat,
        "samples": [{"seconds": sample.seconds, **sample.memory._asdict()} for sample in samples],
    }
    with written_aside(options.out / "soak.json") as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(samples, verdict, options.out / "soak.png")
    print(f"{table(samples)}\n\n{verdict}\n\nWritten: {options.out}/soak.json, soak.png")
    return verdict


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--generations", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--people", type=int, default=10, help="who take turns (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/soak"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.generations < 1 or not 1 < options.people <= len(HELD_OUT):
        parser.error(f"--generations must be at least 1, --people between 2 and {len(HELD_OUT)}")
    if not (options.comfyui / "main.py").is_file():
        parser.error(f"{options.comfyui} is not ComfyUI's folder: it has no main.py")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        verdict = run(options)
    except HyperLoRAError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    return 0 if verdict.flat else 1


if __name__ == "__main__":
    sys.exit(main())
