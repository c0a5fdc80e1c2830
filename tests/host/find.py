"""Every real ComfyUI on this machine that tests can run against. Standard library only: used before anything is installed."""

import os
import subprocess
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


def find_hosts() -> list[Path]:
    """COMFYUI_PATH (several, separated as in PATH); else the folder above an installed pack, and comfy-cli's with its siblings."""
    named = [Path(path).expanduser() for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
    around = [PACK.parent.parent] if PACK.parent.name == "custom_nodes" else []
    usual = sorted((Path.home() / "comfy").glob("ComfyUI*"))
    hosts = named or [*around, *usual]
    return [host for host in dict.fromkeys(hosts) if (host / "main.py").is_file() and (host / "comfy").is_dir()]


def run_in(host: Path, script: str) -> subprocess.CompletedProcess:
    """Run Python source beside the host's modules; its first argument is the pack's folder."""
    return subprocess.run(
        [sys.executable, "-c", script, str(PACK)],
        capture_output=True,
        text=True,
        cwd=host,
        env=os.environ | {"PYTHONPATH": str(host)},
    )
