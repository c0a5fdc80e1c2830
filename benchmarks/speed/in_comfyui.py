"""The same as `apply` and `sampling`, in a real ComfyUI: see benchmarks/host."""

import sys

from .bench import Bench, Budget
from .children import ROOT, answer

GROUP = "in ComfyUI"
MOST_IMPORT, MOST_JOINED = 0.1, 0.6


def measure(bench: Bench) -> None:
    if bench.comfyui is None:
        return
    bench.starting(f"{GROUP}: in its own process")
    command = [sys.executable, str(ROOT / "benchmarks" / "host" / "measure.py"), str(bench.checkpoint.resolve())]
    command += ["--repetitions", str(bench.repetitions), "--latent", str(bench.latent), "--device", bench.device.type]
    command += ["--published"] * bench.published
    figures = answer(command, bench.comfyui, bench.comfyui.resolve())

    def against(name: str, other: str) -> list[float]:
        return [a / b for a, b in zip(figures[name], figures[other], strict=True)]

    layers = figures["patches joined"][0]
    bench.add(GROUP, "registering the nodes", figures["import"], budget=Budget(MOST_IMPORT, of_floor=False))
    bench.add(GROUP, "patches, joined", layers, "patches")
    bench.add(GROUP, "patches, as two LoRAs", figures["patches two"], "patches", floor=layers)
    bench.add(GROUP, "into the weights, joined", figures["apply joined"])
    bench.add(GROUP, "into the weights, as two LoRAs", figures["apply two"])
    bench.add(
        GROUP,
        "seconds, joined against two",
        against("apply joined", "apply two"),
        "x",
        budget=Budget(MOST_JOINED, of_floor=False),
        note="both with what loading a model costs anyway",
    )
    bench.add(GROUP, "sampling step, plain", figures["step plain"])
    for mode in ("merge", "bypass"):
        bench.add(GROUP, f"sampling step, {mode}", figures[f"step {mode}"])
        bench.add(GROUP, f"sampling step, {mode} against plain", against(f"step {mode}", "step plain"), "x")
        note = "first step after the change, less the same step without a change"
        bench.add(GROUP, f"change the person, {mode}", figures[f"change {mode}"], note=note)
    if "GB held while sampling" in figures:
        bench.add(GROUP, "GPU memory of ours after generating", figures["GB after generating"], "GB")
        bench.add(
            GROUP,
            "GPU memory of ours, held when the host asks for it",
            figures["GB held while sampling"],
            "GB",
            budget=Budget(0, of_floor=False),
        )
