"""Where ONNX networks run: onnxruntime's providers, and the ways in which its packages get in each other's way."""

import logging
from importlib import metadata
from typing import Any

import torch

from ..errors import HyperLoRAError
from ..packages import require

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
# name -> (onnxruntime's providers for it, best first; the distribution that has them)
PROVIDERS = {
    "cuda": (("CUDAExecutionProvider",), "onnxruntime-gpu"),
    "rocm": (("MIGraphXExecutionProvider", "ROCMExecutionProvider"), "onnxruntime-migraphx"),
    "directml": (("DmlExecutionProvider",), "onnxruntime-directml"),
    "coreml": (("CoreMLExecutionProvider",), "onnxruntime"),
    "cpu": ((CPU,), "onnxruntime"),
}
# CoreML is left to those who ask for it: compiling costs more than it gains on a few photos, and a detector with free
# input sizes can end the process there
AUTO = ("cuda", "rocm", "directml")

DISTRIBUTIONS = (
    "onnxruntime-gpu", "onnxruntime-migraphx", "onnxruntime-rocm", "onnxruntime-directml", "onnxruntime-openvino",
    "onnxruntime-training", "onnxruntime",
)  # fmt: skip


def shared_provider(provider: str, processes: int) -> str:
    """What "auto" means for each of several processes: the CPU, since each would hold the networks on the GPU anew."""
    return "cpu" if provider.lower() == "auto" and processes > 1 else provider


def choose_providers(provider: str = "auto") -> list[str]:
    """The list to give to onnxruntime for "auto" or a key of PROVIDERS (any case); the CPU stands last.

    "auto" takes the best that is installed, and logs a warning when a GPU that PyTorch uses stays unused. Raises
    HyperLoRAError when what was asked for isn't installed, MissingPackageError without onnxruntime.
    """
    provider = provider.lower()
    if provider != "auto" and provider not in PROVIDERS:
        raise HyperLoRAError(f'"{provider}" isn\'t a provider: choose auto, {", ".join(PROVIDERS)}.')
    available = require("onnxruntime", "Finding faces").get_available_providers()
    for candidate in AUTO if provider == "auto" else (provider,):
        for name in PROVIDERS[candidate][0]:
            if name in available:
                return [CPU] if name == CPU else [name, CPU]
    if provider != "auto":
        raise HyperLoRAError(
            f'Face networks can\'t run on "{provider}": the installed onnxruntime offers {", ".join(available)}. '
            f'{runtime_conflict() or _install(PROVIDERS[provider][1])} Or choose the provider "cpu".'
        )
    if torch.cuda.is_available():
        wanted = "rocm" if torch.version.hip else "cuda"
        log.warning(
            "Face networks run on the CPU, because the installed onnxruntime has no %s. %s",
            PROVIDERS[wanted][0][0],
            runtime_conflict() or _install(PROVIDERS[wanted][1]),
        )
    return [CPU]


def check_session(session: Any, providers: list[str], required: bool) -> None:
    """See that `session` runs on the first of `providers`: onnxruntime falls back to the CPU without an exception.

    It does so when libraries are missing, such as cuDNN. Raises HyperLoRAError when `required` (the user asked for that
    provider); logs a warning otherwise.
    """
    running = session.get_providers()
    if providers[0] in running:
        return
    advice = (
        "Its libraries don't load: for CUDA, run python -m pip install nvidia-cudnn-cu12 (or the version that "
        "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html names), then restart."
    )
    if required:
        raise HyperLoRAError(
            f"Face networks can't run on {providers[0]}, only on {', '.join(running)}. {advice} "
            'Or choose the provider "cpu".'
        )
    log.warning("Face networks run on the CPU: %s is installed but didn't start. %s", providers[0], advice)


def runtime_conflict() -> str | None:
    """A sentence with the commands that mend it when several onnxruntime distributions are installed, else None.

    They share one folder, so the one installed last has overwritten parts of the other; installing insightface pulls in
    the plain one beside onnxruntime-gpu.
    """
    installed = [name for name in DISTRIBUTIONS if _is_installed(name)]
    if len(installed) < 2:
        return None
    return (
        f"{' and '.join(installed)} are installed together and overwrite each other's files. {_install(installed[0])}"
    )


def _install(distribution: str) -> str:
    """Commands that leave exactly `distribution` installed."""
    present = [name for name in DISTRIBUTIONS if _is_installed(name)]
    remove = f"python -m pip uninstall -y {' '.join(present)}   and then: " if present else ""
    return f"Run: {remove}python -m pip install {distribution}   (with ComfyUI's own Python), then restart."


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
