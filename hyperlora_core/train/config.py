"""Training configs: TOML files in which every number of a run stands, read into dataclasses."""

import dataclasses
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .. import packages
from ..errors import HyperLoRAError

Config = TypeVar("Config")
SHIPPED = Path(__file__).with_name("configs")
PROFILES = ("gpu", "cpu", "sdxl")  # the demo on a GPU, on a CPU; the paper's numbers


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How a module is trained, whatever it is. Batches are per process and per accumulated part."""

    seed: int
    steps: int  # optimiser steps
    batch: int
    accumulation: int  # batches per step
    rate: float  # AdamW's learning rate between warm-up and cool-down
    warmup: int  # steps
    cooldown: float  # share of the steps, at the end, over which the rate falls to nothing along a cosine
    beta2: float  # AdamW's memory of squared gradients
    weight_decay: float  # of matrices and kernels only
    clip_norm: float
    ema_decay: float  # 0: no moving average
    precision: str  # no, bf16, fp16, or auto: bf16, but on a processor that is slow in it no
    channels_last: bool
    save_every: int  # steps
    sample_every: int
    # steps at which the rate begins anew, RESTART times as high: each round has its own warm-up and cool-down
    restarts: tuple[int, ...] | None = None


# what a resumed run may change without becoming another run's continuation
FREE = ("steps", "batch", "accumulation", "rate", "warmup", "cooldown", "ema_decay", "precision", "channels_last",
        "save_every", "sample_every")  # fmt: skip


def config_path(command: str, config: str | None, device: str) -> Path:
    """The file that `--config` means: a path, or the shipped profile ("gpu", "cpu"); None: the device's profile."""
    profile = config or ("cpu" if device == "cpu" else "gpu")
    if profile not in PROFILES:
        return Path(profile)
    path = SHIPPED / profile / f"{command}.toml"
    if not path.exists():
        others = [name for name in PROFILES if (SHIPPED / name / path.name).exists()]
        raise HyperLoRAError(
            f"No config {profile} is shipped for {command}, only {', '.join(others)}: give one of these or a TOML file of yours "
            "(--config)."
        )
    return path


def load_config(path: str | Path, kind: type[Config]) -> Config:
    """Read a TOML file into the dataclass `kind`, section by section.

    A section that may be None may be left out. Raises HyperLoRAError for a file that can't be read, an unknown, a missing
    or a wrongly typed key.
    """
    toml = packages.require("tomllib" if sys.version_info >= (3, 11) else "tomli", "Reading a training config")
    path = Path(path)
    try:
        table = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HyperLoRAError(
            f"The config {path} can't be read ({error.strerror}). Give a TOML file, or one of {', '.join(PROFILES)}."
        ) from error
    except ValueError as error:  # TOML's and UTF-8's decoding errors
        raise HyperLoRAError(f"The config {path} is not valid TOML ({error}). Correct that line.") from error
    return _filled(kind, table, str(path), "")


def _filled(kind: type[Config], table: Mapping[str, Any], path: str, section: str) -> Config:
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key in table:
        if key not in known:
            raise HyperLoRAError(f"{path} has an unknown key {section}{key}. Known here: {', '.join(known)}.")
    for key in known:
        if key not in table and not isinstance(hints[key], types.UnionType):
            raise HyperLoRAError(f"{path} lacks the key {section}{key}. Take it from a config in {SHIPPED}.")
    return kind(**{key: _value(hints[key], value, path, f"{section}{key}") for key, value in table.items()})


def _value(hint: Any, value: Any, path: str, key: str) -> Any:
    if isinstance(hint, types.UnionType):  # a section or None
        if value is None:
            return None
        hint = get_args(hint)[0]
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _filled(hint, value, path, f"{key}.")
    if get_origin(hint) is tuple and isinstance(value, list):
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_value(kind, item, path, key) for kind, item in zip(kinds, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise HyperLoRAError(f"{path}: {key} must be {getattr(hint, '__name__', hint)}, not {value!r}.")
    return value


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A config as {"section.key": value}, tuples as lists: what a checkpoint remembers of it."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f"{prefix}{field.name}.")
        else:
            values[f"{prefix}{field.name}"] = list(value) if isinstance(value, tuple) else value
    return values


def from_flat(kind: type[Config], values: Mapping[str, Any], where: Path) -> Config:
    """The inverse of `flat`. Raises HyperLoRAError when the values aren't `kind`'s."""
    table: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return _filled(kind, table, str(where), "")


def check_same(saved: Mapping[str, Any], config: Any, checkpoint: Path) -> None:
    """Raise HyperLoRAError when `checkpoint` was trained with other values than `config`'s; FREE ones may differ."""
    now = flat(config)
    other = [
        key
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key) and key.removeprefix("loop.") not in FREE
    ]
    if other:
        values = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in other[:4])
        raise HyperLoRAError(
            f"{checkpoint} comes from another config ({values}). Go on with that one, or train into another folder."
        )
