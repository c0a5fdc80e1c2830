"""What is installed, found, missing or broken, and the command that mends it."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from . import folders
from .catalog import FIRST_PICTURE, CatalogItem, load_catalog, readable
from .download import by_disk
from .errors import HyperLoRAError, cli

OLDEST_PYTHON = (3, 10)
OLDEST_COMFYUI = "0.25.0"
OLDEST_INSIGHTFACE = "0.7.3"
SPARE_BYTES = 1e9  # for the LoRAs and pictures that are made
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-migraphx",
    "onnxruntime-rocm",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-training",
)
# run apart: a broken native library can end the process that imports it
TORCH_PROBE = """
import torch
kinds = [("CUDA", torch.cuda), ("Apple Metal", torch.backends.mps), ("Intel XPU", getattr(torch, "xpu", None))]
print(next((kind for kind, backend in kinds if backend and backend.is_available()), "the CPU alone"))
"""
INSIGHTFACE_PROBE = "import insightface.app"


class Finding(NamedTuple):
    """One line of the report; `remedy` is a command or what to do, empty where all is well."""

    level: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


def examine(models_folder: str | Path | None = None) -> list[Finding]:
    """Look at Python, packages, ComfyUI, weights and disk; never raises for what it finds.

    `models_folder`: where the weights lie; found like `hyperlora download` finds it when left out.
    """
    findings = [_python(), *_torch(), *_plain_packages(), *_faces(), *_optional_packages()]
    try:
        comfyui = folders.find_comfyui()
    except HyperLoRAError as error:
        findings.append(Finding("fail", str(error), "unset COMFYUI_PATH"))
        comfyui = None
    findings += _comfyui(comfyui)
    try:
        models = folders.models_folder(models_folder or (comfyui and comfyui / "models"))
        searched = folders.search_folders(models)
    except HyperLoRAError as error:
        findings.append(Finding("warn", f"weights weren't looked for. {error}", cli("doctor --models-folder DIR")))
        return findings
    return [*findings, *_weights(searched), _checkpoints(searched), _disk(models, searched)]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Finding("fail", f"Python {version}: 3.10 or newer is needed", "install Python 3.12 and ComfyUI with it")
    return Finding("ok", f"Python {version} ({sys.executable})")


def _torch() -> Iterator[Finding]:
    torch, vision = _version("torch"), _version("torchvision")
    if torch is None:
        yield Finding("fail", "torch isn't installed", _pip("torch torchvision"))
        return
    device, problem = _probe(TORCH_PROBE)
    if problem:
        yield Finding(
            "fail", f"torch {torch} can't be imported: {problem}", _pip("--force-reinstall torch torchvision")
        )
    elif device == "the CPU alone":
        yield Finding(
            "warn", f"torch {torch} uses {device}: slow", "see pytorch.org/get-started for a build for your GPU"
        )
    else:
        yield Finding("ok", f"torch {torch} uses {device}")
    if vision is None:
        yield Finding("fail", "torchvision isn't installed", _pip(_matching_vision(torch)))
        return
    # torchvision names the one torch that it was built for
    wanted = next((found[1] for line in importlib.metadata.requires("torchvision") or ()
                   if (found := re.match(r"torch\s*\(?==([\d.]+)", line))), None)  # fmt: skip
    if wanted and _numbers(wanted) != _numbers(torch):
        what = f"torchvision {vision} belongs to torch {wanted}, but torch {torch} is installed"
        yield Finding("fail", what, _pip(_matching_vision(torch)))
    else:
        yield Finding("ok", f"torchvision {vision}")


def _plain_packages() -> Iterator[Finding]:
    for package in ("numpy", "safetensors", "einops", "pillow", "tqdm"):
        version = _version(package)
        yield Finding("ok", f"{package} {version}") if version else _not_installed("fail", package)


def _faces() -> Iterator[Finding]:
    insightface = _version("insightface")
    if insightface is None:
        yield _not_installed("fail", "insightface", "finds the faces")
    elif _numbers(insightface) < _numbers(OLDEST_INSIGHTFACE):
        what = f"insightface {insightface}: {OLDEST_INSIGHTFACE} or newer is needed"
        yield Finding("fail", what, _pip("--upgrade insightface"))
    runtimes = [f"{name} {version}" for name in RUNTIMES if (version := _version(name))]
    conflict = _runtime_conflict()
    if not runtimes:
        yield _not_installed("fail", "onnxruntime", "runs the face networks")
    elif conflict:
        what, _, remedy = conflict.partition(" Run: ")
        yield Finding("fail", what, remedy)
    else:
        yield Finding("ok", runtimes[0])
    if insightface and runtimes:
        _, problem = _probe(INSIGHTFACE_PROBE)
        if problem:
            what = f"insightface {insightface} can't be imported: {problem}"
            yield Finding("fail", what, _pip("--force-reinstall --no-deps insightface"))
        else:
            yield Finding("ok", f"insightface {insightface}")


def _runtime_conflict() -> str | None:
    try:
        from .face.providers import runtime_conflict
    except (ImportError, OSError):
        # it needs torch, whose absence or broken libraries are a finding of their own
        return None
    return runtime_conflict()


def _optional_packages() -> Iterator[Finding]:
    wanted = {
        "open-clip-torch": "the vision tower outside ComfyUI",
        "diffusers": "portraits outside ComfyUI, training",
        "transformers": "portraits outside ComfyUI, training",
        "peft": "LoRA files in diffusers",
    }
    for package, purpose in wanted.items():
        version = _version(package)
        yield (
            Finding("ok", f"{package} {version}") if version else _not_installed("warn", package, f"only for {purpose}")
        )


def _comfyui(comfyui: Path | None) -> Iterator[Finding]:
    if comfyui is None:
        yield Finding("warn", folders.NO_COMFYUI, "pip install comfy-cli && comfy install")
        return
    version = folders.comfyui_version(comfyui)
    if version is None:
        what = f"ComfyUI in {comfyui}: its version can't be read here; {OLDEST_COMFYUI} or newer is needed"
        yield Finding("warn", what, "compare with Settings > About in ComfyUI")
    elif _numbers(version) < _numbers(OLDEST_COMFYUI):
        remedy = f'git -C "{comfyui}" pull && {_pip(f"""-r "{comfyui / "requirements.txt"}" """.strip())}'
        if not (comfyui / ".git").exists():
            remedy = "comfy update comfy   (or the updater of ComfyUI Desktop or of the portable package)"
        yield Finding("fail", f"ComfyUI {version} in {comfyui}: {OLDEST_COMFYUI} or newer is needed", remedy)
    else:
        yield Finding("ok", f"ComfyUI {version} in {comfyui}")
    packs = sorted(folder.parent for folder in (comfyui / "custom_nodes").glob("*/hyperlora_core"))
    if len(packs) > 1:
        remedy = f'move all but one away, e.g. out of "{packs[-1]}"'
        yield Finding("fail", f"this pack is in {comfyui / 'custom_nodes'} {len(packs)} times", remedy)
    elif packs:
        yield Finding("ok", f"the nodes are installed: {packs[0]}")
    else:
        yield Finding("warn", f"the nodes aren't in {comfyui / 'custom_nodes'}", _install_nodes(comfyui))


def _weights(searched: list[Path]) -> Iterator[Finding]:
    for item in load_catalog().values():
        found = item.find(searched)
        if all(found):
            yield Finding("ok", f"{item.title}: {found[0] if len(found) == 1 else found[0].parent}")
            continue
        try:
            apart = [file.find(searched) for file in item.files]
        except HyperLoRAError as error:
            yield Finding("fail", f"{item.title}: {error}", _fetch(item, searched[0]))
            continue
        if all(apart):
            lie = " and ".join(dict.fromkeys(str(place.parent) for place in apart))
            yield Finding(
                "fail", f"{item.title} is whole in no folder, its files lie in {lie}", _fetch(item, searched[0])
            )
        elif any(apart):
            missing = [file.path for file, place in zip(item.files, apart, strict=True) if place is None]
            yield Finding("fail", f"{item.title} isn't whole: {', '.join(missing)} missing", _fetch(item, searched[0]))
        elif item.group == FIRST_PICTURE:
            what = f"{item.title} isn't in {searched[0]}: {item.purpose}"
            yield Finding("fail", what, _fetch(item, searched[0]))
        else:
            yield Finding("ok", f"{item.title}: not there, not needed; {item.purpose}")


def _checkpoints(searched: list[Path]) -> Finding:
    checkpoints = {path for folder in searched for path in (folder / "checkpoints").rglob("*.safetensors")}
    if not checkpoints:
        what = f"no checkpoint in {searched[0] / 'checkpoints'}: an SDXL checkpoint is needed to make pictures"
        return Finding("warn", what, _fetch(load_catalog()["realvisxl"], searched[0]))
    return Finding(
        "ok", f"{len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)} in {searched[0] / 'checkpoints'}"
    )


def _disk(models: Path, searched: list[Path]) -> Finding:
    files = [file for item in load_catalog().values() if item.group == FIRST_PICTURE for file in item.files]
    missing = [(models / file.path, file.approximate_size) for file in files if not any(file.places(searched))]
    for folder, needed in by_disk(missing or [(models / "any", 0)]).items():
        free = shutil.disk_usage(folder).free
        if free < needed + SPARE_BYTES:
            what = f"{readable(free)} free in {folder}, {readable(needed + SPARE_BYTES)} are needed"
            return Finding(
                "fail", what, f"free some space, or choose another disk: {cli('download --models-folder DIR')}"
            )
    return Finding("ok", f"{readable(free)} free in {folder}")


def _fetch(item: CatalogItem, models: Path) -> str:
    if item.by_hand:
        return f"open {item.page}"
    return f'{cli("download")} {item.name} --models-folder "{models}"'


def _install_nodes(comfyui: Path) -> str:
    pack, link = _pack(), comfyui / "custom_nodes" / "hyperlora-zero-shot"
    if not (pack / "nodes").is_dir():
        return "comfy node install hyperlora-zero-shot"
    return f'mklink /J "{link}" "{pack}"' if sys.platform == "win32" else f'ln -s "{pack}" "{link}"'


def _pack() -> Path:
    return Path(__file__).absolute().parent.parent


def _not_installed(level: Literal["warn", "fail"], package: str, purpose: str = "") -> Finding:
    return Finding(level, f"{package} isn't installed{purpose and f': {purpose}'}", _pip(package))


def _pip(what: str) -> str:
    return f"{_python_command()} -m pip install {what}"


def _python_command() -> str:
    return f'"{sys.executable}"' if " " in sys.executable else sys.executable


def _matching_vision(torch: str) -> str:
    """The torchvision of a torch 2.N is 0.(N + 15); builds for one CUDA come from their own index."""
    major, minor = _numbers(torch)[:2]
    package = f'"torchvision==0.{minor + 15}.*"' if major == 2 else "torchvision"
    build = torch.partition("+")[2]
    return f"{package} --index-url https://download.pytorch.org/whl/{build}" if build else package


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _probe(code: str) -> tuple[str, str]:
    """Run Python code in a process of its own: (its last line of output, "") or ("", why it failed)."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "", "it takes longer than two minutes"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or [""]
    return ("", lines[-1] or f"it ends with code {done.returncode}") if done.returncode else (lines[-1], "")
