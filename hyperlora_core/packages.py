"""Optional packages, imported where they are used."""

import importlib
from types import ModuleType

from .errors import MissingPackageError

PIP_NAMES = {
    "insightface": "insightface onnxruntime",
    "onnxruntime": "onnxruntime",
    "open_clip": "open-clip-torch",
    "diffusers": "diffusers transformers accelerate peft",
    "cv2": "opencv-python",
    "google": "protobuf",
    "yaml": "pyyaml",
    "ray": '"ray[data]"',
    "transformers": "transformers",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import `module` (dotted names too), or raise MissingPackageError with the command that installs it.

    `purpose` completes the sentence "... needs insightface", e.g. "Finding faces".
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:  # ValueError: compiled for another numpy
        raise MissingPackageError(
            f"{purpose} needs {package}, which can't be imported here ({error}). "
            f"Run: python -m pip install {PIP_NAMES.get(package, package)}   (with ComfyUI's own Python), then restart."
        ) from error
