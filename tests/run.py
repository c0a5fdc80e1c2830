"""Set up a fresh environment and run all tests: `python tests/run.py [pytest arguments]`.

Everything is installed into .venv-test beside this project. Tests against a real ComfyUI run where one is found
(COMFYUI_PATH, or comfy-cli's ~/comfy/ComfyUI); its own requirements are installed too.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
ENVIRONMENT = ROOT / ".venv-test"

sys.path.insert(0, str(TESTS / "host"))
from find import find_hosts  # noqa: E402


def main() -> int:
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    hosts = find_hosts()
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        TESTS / "constraints.txt",
    ]
    # one call, so that pip sees every requirement at once; of several hosts the first decides its own packages' versions
    wanted = ["-e", f"{ROOT}[test]"]
    if hosts:
        wanted += ["-r", hosts[0] / "requirements.txt"]
    print(f"Installing into {ENVIRONMENT} ...", flush=True)
    subprocess.run([*install, *wanted], check=True)
    print(f"ComfyUI: {', '.join(map(str, hosts)) or 'none found; tests that need one will be skipped'}", flush=True)
    lint = subprocess.run([python, "-m", "ruff", "check", ROOT]).returncode
    return lint or subprocess.run([python, "-m", "pytest", TESTS, *sys.argv[1:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
