"""Which models a batch uses, in a form that other processes and machines can be given."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..catalog import load_catalog
from ..encode import PhotoEncoder
from ..locate import DEFAULT, DEMO, find_face_pack, open_encoder


@dataclass(frozen=True)
class Models:
    """Arguments of `open_encoder`."""

    checkpoint: str = DEFAULT
    face_pack: str | None = None
    clip: str | None = None
    folder: str | None = None  # ComfyUI's models folder
    provider: str = "auto"
    device: str = "cpu"

    def open(self) -> PhotoEncoder:
        """Open them all. Raises HyperLoRAError, as `open_encoder`."""
        return open_encoder(self.checkpoint, self.face_pack, self.clip, self.folder, self.provider, self.device)

    def absolute(self) -> "Models":
        """With paths that mean the same in any folder."""
        paths = {name: getattr(self, name) for name in ("checkpoint", "face_pack", "clip", "folder")}
        if self.checkpoint in (DEMO, *load_catalog()):
            del paths["checkpoint"]
        return replace(self, **{name: str(Path(path).absolute()) for name, path in paths.items() if path is not None})

    def face_folder(self) -> Path:
        """The face pack alone, for processes that only look at photos."""
        if self.face_pack is not None:
            return Path(self.face_pack).absolute()
        return find_face_pack(self.checkpoint, self.folder)
