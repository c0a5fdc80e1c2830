"""The exceptions that users are meant to read, and the command that their sentences name."""

import os
import shutil
import sys
from pathlib import Path


class HyperLoRAError(ValueError):
    """Bad input or a missing piece: one sentence that names the thing, what is wrong, and the remedy.

    Nodes, Python and the command line all show the same text.
    """


class NoFaceError(HyperLoRAError):
    """A photo in which no face was found; a batch job may skip it and report it."""


class MissingPackageError(HyperLoRAError, ImportError):
    """An optional package that this step needs; the message holds the command that installs it."""


def cli(arguments: str) -> str:
    """The command line as it works here, to be pasted: a pack in custom_nodes has no installed `hyperlora`."""
    if shutil.which("hyperlora"):
        return f"hyperlora {arguments}"
    script = Path(sys.executable).with_name("hyperlora.exe" if os.name == "nt" else "hyperlora")
    if script.exists():
        return f"{_quoted(script)} {arguments}"
    pack = Path(__file__).parents[1]
    folder = (
        _quoted(pack) if (pack / "__main__.py").exists() else "-m hyperlora_core"
    )  # the latter in an installed wheel
    return f"{_quoted(sys.executable)} {folder} {arguments}"


def _quoted(path: str | Path) -> str:
    """For a shell, where it has to be: PowerShell takes a quoted word in front for a text, not for a command."""
    return f'"{path}"' if " " in str(path) else str(path)
