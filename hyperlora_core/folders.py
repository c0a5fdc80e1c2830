"""Where ComfyUI and its models lie on this machine."""

import os
import re
from pathlib import Path

from .errors import HyperLoRAError
from .packages import require

NO_COMFYUI = (
    "No ComfyUI was found: name its models folder with --models-folder DIR, or set COMFYUI_PATH. ComfyUI itself is "
    "installed by `pip install comfy-cli && comfy install`, by ComfyUI Desktop (comfy.org/download), or from "
    "github.com/comfyanonymous/ComfyUI with git."
)


def find_comfyui() -> Path | None:
    """ComfyUI's folder: COMFYUI_PATH, the one that this pack is installed in, comfy-cli's, ~/ComfyUI, or Desktop's.

    Raises HyperLoRAError when COMFYUI_PATH is set but isn't a ComfyUI folder.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not _is_comfyui(Path(named).expanduser()):
            raise HyperLoRAError(f"COMFYUI_PATH is {named}, which isn't a ComfyUI folder. Correct it or unset it.")
        return Path(named).expanduser()
    # absolute, not resolved: the pack may be a link in custom_nodes to a checkout elsewhere
    pack = Path(__file__).absolute().parent.parent
    candidates = [pack.parent.parent] if pack.parent.name == "custom_nodes" else []
    candidates += [Path.home() / "comfy" / "ComfyUI", Path.home() / "ComfyUI", Path.home() / "Documents" / "ComfyUI"]
    return next(filter(_is_comfyui, candidates), None)


def models_folder(named: str | Path | None = None) -> Path:
    """The folder to put weights in: `named` (ComfyUI's own folder is taken too), or the models folder of ComfyUI.

    Raises HyperLoRAError when `named` isn't there or nothing is found.
    """
    if named is None:
        comfyui = find_comfyui()
        if comfyui is None:
            raise HyperLoRAError(NO_COMFYUI)
        return comfyui / "models"
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise HyperLoRAError(f"There is no folder {folder}. Make it first, or name ComfyUI's models folder.")
    return folder / "models" if _is_comfyui(folder) else folder


def search_folders(models: Path) -> list[Path]:
    """`models` and every further models folder that ComfyUI's extra_model_paths.yaml beside it names.

    A section counts through its base_path, with and without `models` below it; entries that rename single folders
    are ComfyUI's own business. Raises HyperLoRAError when the file can't be read.
    """
    settings = models.parent / "extra_model_paths.yaml"
    if not settings.is_file():
        return [models]
    yaml = require("yaml", f"Reading {settings}")
    try:
        sections = yaml.safe_load(settings.read_text(encoding="utf-8")) or {}
        bases = [section["base_path"] for section in sections.values() if section and "base_path" in section]
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise HyperLoRAError(f"{settings} can't be read ({error}). Correct it as its .example shows.") from error
    extra = [settings.parent / os.path.expandvars(os.path.expanduser(base)) for base in bases]
    return [models, *(folder for base in extra for folder in (base, base / "models") if folder.is_dir())]


def comfyui_version(comfyui: Path) -> str | None:
    """The version as written in comfyui_version.py, e.g. "0.33.0"; None where the file isn't (ComfyUI Desktop)."""
    file = comfyui / "comfyui_version.py"
    written = (
        re.search(r"__version__\s*=\s*[\"']([^\"']+)", file.read_text(encoding="utf-8")) if file.is_file() else None
    )
    return written and written[1]


def _is_comfyui(folder: Path) -> bool:
    return (folder / "models").is_dir() and (folder / "custom_nodes").is_dir()
