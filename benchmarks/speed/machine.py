"""On what was measured: the machine, the date, the versions."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import hyperlora_core

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "onnxruntime",
    "onnxruntime-gpu",
    "insightface",
    "open-clip-torch",
    "diffusers",
)


def describe_machine(device: torch.device) -> dict[str, object]:
    """As it goes into the JSON."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "hyperlora": hyperlora_core.__version__,
        "commit": _commit(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout, marked where files differ from it; None in a copy without git."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
