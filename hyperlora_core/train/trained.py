"""What a training left in its checkpoint: the config it went by, and the values it came to."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import HyperLoRAError
from .config import from_flat


class Trained:
    """A checkpoint.pt, read once. Raises HyperLoRAError when it isn't there or is damaged."""

    def __init__(self, path: Path):
        self.path = path
        self._state = read_checkpoint(path, mapped=True)

    @property
    def values(self) -> dict[str, Tensor]:
        """The trained tensors by name: their moving average where there is one."""
        names, ema = self._state["module"], self._state["ema"]
        return dict(zip(names, names.values() if ema is None else ema["shadow_params"], strict=True))

    @property
    def settings(self) -> dict[str, Any]:
        """The config that was trained with, section.key -> value."""
        return json.loads(self._state["config"])

    def config(self, kind: type) -> Any:
        """The same as the dataclass `kind`."""
        return from_flat(kind, self.settings, self.path)

    def fill(self, module: nn.Module) -> nn.Module:
        """Give a module that was built as the trained one its values, and freeze it."""
        values = self.values
        check_shapes(values, {name: p for name, p in module.named_parameters() if p.requires_grad}, self.path)
        module.load_state_dict(values | self._state.get("statistics", {}), strict=False)
        return module.eval().requires_grad_(False)


def read_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read checkpoint.pt as it is; `mapped`: from the disk, each tensor when it is used. Three quarters of SDXL's 25 GB are
    the optimiser's and the average's, and every process of a training reads it. Raises HyperLoRAError when it isn't there or
    is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise HyperLoRAError(f"There is no {path}: train that model first.") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise HyperLoRAError(f"{path} can't be read as a checkpoint: delete it and train again.") from error


def check_shapes(given: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Raise HyperLoRAError unless a checkpoint holds what is to be filled."""
    if {name: value.shape for name, value in given.items()} != {name: value.shape for name, value in wanted.items()}:
        raise HyperLoRAError(f"{path} holds another network than this version trains. Train into another folder.")
