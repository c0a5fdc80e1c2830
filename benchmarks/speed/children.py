"""Measurements in processes of their own: `python -m benchmarks.speed.children NAME JSON` prints the figures as JSON."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def in_child(name: str, **arguments) -> dict:
    """Call the function below of that name in a new process of this Python."""
    return answer([sys.executable, "-m", __name__, name, json.dumps(arguments)], ROOT)


def answer(command: list[str], folder: Path, path: Path | None = None) -> dict:
    """The JSON in the last line that a command prints. `path`: the only folder for PYTHONPATH.

    Raises HyperLoRAError when it fails.
    """
    environment = os.environ | ({} if path is None else {"PYTHONPATH": str(path)})
    # importing finds modules compiled, as at every start but the first
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode:
        from hyperlora_core import HyperLoRAError  # not above: a child measures this import

        said = run.stderr.strip()[-3000:]
        if run.returncode == -getattr(signal, "SIGKILL", 0):  # what a system short of memory does
            said = f"the system ended it, most likely for want of memory: close other programs. {said}"
        raise HyperLoRAError(f"{' '.join(command[:4])} failed ({run.returncode}): {said}")
    return json.loads(run.stdout.splitlines()[-1])


def load(checkpoint: str, clip: str, precision: str, device: str, repetitions: int) -> dict:
    """Seconds and memory of loading, after a first time that brings the files into the page cache."""
    import torch

    from hyperlora_core import VisionEncoder, load_hyperlora

    from .ceilings import PRECISIONS
    from .memory import Peak
    from .timing import samples, waiter

    where = torch.device(device)
    torch.zeros(1, device=where)  # the device's own start isn't the checkpoint's

    def tower() -> VisionEncoder:
        return VisionEncoder.load(clip, where, PRECISIONS[precision])

    tower()  # imports open_clip
    figures = {}
    for name, call in (
        ("checkpoint", lambda: load_hyperlora(checkpoint, where, PRECISIONS[precision])),
        ("clip", tower),
    ):
        with Peak() as peak:
            loaded = call()
        figures[f"{name} bytes"] = peak.bytes
        del loaded
        figures[name] = samples(call, repetitions, waiter(where))
    return figures


def import_library() -> dict:
    start = time.perf_counter()
    import hyperlora_core  # noqa: F401

    return {"seconds": time.perf_counter() - start}


def import_pack() -> dict:
    """Beyond what every ComfyUI imports anyway, with a stand-in for the host's own modules."""
    import einops  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401
    import tqdm  # noqa: F401

    sys.path.append(str(ROOT / "tests"))
    from pack_without_host import our_nodes

    start = time.perf_counter()
    with our_nodes():
        return {"seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
