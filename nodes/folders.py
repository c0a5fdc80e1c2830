"""Where files lie: by the host's folders and `extra_model_paths.yaml`, the authors' old tree, and the shipped demo."""

from contextlib import suppress
from pathlib import Path

import folder_paths

from ..hyperlora_core import HyperLoRAError
from ..hyperlora_core.catalog import shipped_models
from ..hyperlora_core.errors import cli
from ..hyperlora_core.vision import is_clip_tower

HYPER_LORA = "hyper_lora"
CLIP_VISION = "clip_vision"
INSIGHTFACE = "insightface"
IDENTITIES = "hyper_lora_identities"
DEMO = "demo (shipped)"
AUTO = "auto"

FIRST_CHOICE = "fidelity"
MODULES_FILE = "hyper_lora_modules.json"
# the authors' pack kept the encoders of old here, below the checkpoints
OLD_CLIP_FOLDERS = ("clip_vit", "clip_processor")


def register() -> None:
    """Add our folders to the host's, keeping what `extra_model_paths.yaml` has put there."""
    models = Path(folder_paths.models_dir)
    for name, extensions in (
        (HYPER_LORA, {".safetensors", ".json"}),
        (INSIGHTFACE, {".onnx"}),
        (IDENTITIES, {".safetensors"}),
    ):
        paths, _ = folder_paths.folder_names_and_paths.get(name, ([], set()))
        default = str(models / name)
        folder_paths.folder_names_and_paths[name] = ([*paths, *([] if default in paths else [default])], extensions)


def demo_folder() -> Path:
    return shipped_models() / "demo"


def checkpoint_names() -> list[str]:
    """Every HyperLoRA that the host's folders hold, then the demo."""
    files = [Path(name) for name in folder_paths.get_filename_list(HYPER_LORA)]
    folders = {file.parent for file in files if file.name == MODULES_FILE}
    singles = {
        file
        for file in files
        if file.suffix == ".safetensors" and file.parent not in folders and not set(OLD_CLIP_FOLDERS) & set(file.parts)
    }
    names = sorted(path.as_posix() for path in folders | singles)
    # the first is what a new node shows: the closest to the photo, as on the command line
    return [*sorted(names, key=lambda name: FIRST_CHOICE not in name), DEMO]


def checkpoint_path(name: str) -> Path:
    if name == DEMO:
        return demo_folder() / "hyper_lora"
    listing = folder_paths.get_full_path(HYPER_LORA, f"{name}/{MODULES_FILE}")
    path = (listing and Path(listing).parent) or folder_paths.get_full_path(HYPER_LORA, name)
    if not path:
        raise HyperLoRAError(
            f"There is no HyperLoRA checkpoint {name} in {', '.join(folder_paths.get_folder_paths(HYPER_LORA))}. "
            f"Choose another, or run: {cli('download')}"
        )
    return Path(path)


def clip_tower_names() -> list[str]:
    """Files of the `clip_vision` folders, then the authors' old tree."""
    old = [name for name in folder_paths.get_filename_list(HYPER_LORA) if _is_old_clip(Path(name))]
    return [*folder_paths.get_filename_list(CLIP_VISION), *old]


def _is_old_clip(file: Path) -> bool:
    return "clip_vit" in file.parts and file.suffix == ".safetensors"


def clip_tower_path(name: str) -> Path:
    """Raises HyperLoRAError for a file that is listed, but gone, such as a link to nowhere."""
    folders = (CLIP_VISION, HYPER_LORA) if _is_old_clip(Path(name)) else (CLIP_VISION,)
    path = next((path for folder in folders if (path := folder_paths.get_full_path(folder, name))), None)
    if path is None:
        raise HyperLoRAError(f"The CLIP image tower {name} is gone, or a link to nowhere. Choose another, or auto.")
    return Path(path)


def find_clip_tower(width: int) -> Path:
    """The image tower whose tokens have `width` channels; OpenAI's ViT-L/14 first if several have."""
    candidates = []
    for name in clip_tower_names():
        with suppress(HyperLoRAError):  # a file that is gone hides no other
            candidates += [clip_tower_path(name)] if name.endswith(".safetensors") else []
    candidates.sort(key=lambda path: "clip-vit-large-patch14" not in str(path).lower())
    for path in [*candidates, demo_folder() / "clip_vision" / "model.safetensors"]:
        if path.exists() and is_clip_tower(path, width):
            return path
    raise HyperLoRAError(
        f"No CLIP image tower with {width} channels lies in {', '.join(folder_paths.get_folder_paths(CLIP_VISION))}. "
        f"Put OpenAI's CLIP ViT-L/14 there (run: {cli('download clip-vision')})."
    )


def face_pack_names() -> list[str]:
    """Folders of ONNX files below the `insightface` folders, antelopev2 first, then the demo."""
    files = [Path(name) for name in folder_paths.get_filename_list(INSIGHTFACE)]
    packs = {_pack(file) for file in files if len(file.parts) > 1} - {None}
    return [*sorted(packs, key=lambda name: (name != "antelopev2", name)), DEMO]


def _pack(file: Path) -> str | None:
    """models/NAME/x.onnx and models/NAME/NAME/x.onnx -> NAME; other packs keep single networks beside them."""
    parts = file.parts[1:-1] if file.parts[0] == "models" else file.parts[:-1]
    return parts[0] if parts else None


def face_pack_path(name: str) -> Path:
    if name == DEMO:
        return demo_folder() / "face"
    roots = [Path(root) for root in folder_paths.get_folder_paths(INSIGHTFACE)]
    for root in roots:
        for folder in (root / "models" / name, root / name):
            if folder.is_dir():
                return folder
    raise HyperLoRAError(
        f"There is no face pack {name} in {', '.join(f'{root}/models' for root in roots)}. Run: {cli(f'download {name}')}"
    )


def identity_names() -> list[str]:
    return folder_paths.get_filename_list(IDENTITIES)


def identity_path(name: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise(IDENTITIES, name))
