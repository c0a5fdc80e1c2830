"""Is this file what its name says? Answered from the first bytes, before anything is loaded."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from .errors import HyperLoRAError, cli

AGAIN = f"Delete it and fetch it again with: {cli('download')}"
LFS_POINTER = b"version https://git-lfs"
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# the limit of the safetensors format itself
LONGEST_HEADER = 100_000_000
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
        "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}  # fmt: skip


class Header(NamedTuple):
    """What a safetensors file says about itself: name -> (dtype as written, e.g. "F16", shape), and its metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str]


def check_safetensors(path: str | Path) -> Header:
    """Read the header of a safetensors file and check it against the file's size; no tensor is read.

    Raises HyperLoRAError for a missing or empty file, a web page or Git LFS pointer saved as weights, pickled weights
    (never opened: they can run code), a truncated file, and anything else that isn't safetensors.
    """
    path = Path(path)
    size, start = _size_and_start(path)
    length = int.from_bytes(start[:8], "little")
    # the format first: the eight bytes of a header's length can look like a pickle or like "<"
    if len(start) < 9 or start[8:9] != b"{" or length > LONGEST_HEADER:
        raise HyperLoRAError(_what_instead(path, start))
    if 8 + length > size:
        raise _truncated(path, size, None)
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
        spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HyperLoRAError(f"{path} isn't a safetensors file: its header can't be read. {AGAIN}") from error
    end = 0
    for first, last, name in spans:
        dtype, shape = tensors[name]
        wanted = math.prod(shape) * BITS[dtype] // 8 if dtype in BITS else last - first
        if first != end or last - first != wanted:
            raise HyperLoRAError(f"{path} is damaged: its header gives tensor {name} a place that doesn't fit. {AGAIN}")
        end = last
    if 8 + length + end > size:
        raise _truncated(path, size, 8 + length + end)
    if 8 + length + end < size:
        raise HyperLoRAError(f"{path} is damaged: it holds {size} bytes, its header {8 + length + end}. {AGAIN}")
    return Header(tensors, metadata)


def check_file(path: str | Path, size: int | None = None, kind: str | None = None) -> None:
    """Check a downloaded file by its kind: safetensors by its header, JSON by reading it, others by size and start.

    `size`: the published size in bytes where it is known; `kind`: the ending to go by, that of `path` when left out.
    Raises HyperLoRAError.
    """
    path = Path(path)
    kind = kind or path.suffix
    found, start = _size_and_start(path)
    if kind == ".safetensors":
        check_safetensors(path)
    elif start.lstrip().startswith((b"<", LFS_POINTER)):
        raise HyperLoRAError(_what_instead(path, start))
    elif kind == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise HyperLoRAError(f"{path} isn't JSON ({error}). {AGAIN}") from error
    if size is not None and found < size:
        raise _truncated(path, found, size)
    if size is not None and found > size:
        raise HyperLoRAError(f"{path} holds {found} bytes, the published file {size}. {AGAIN}")


def _size_and_start(path: Path) -> tuple[int, bytes]:
    if not path.is_file():
        raise HyperLoRAError(f"There is no file {path}. Fetch it with: {cli('download')}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise HyperLoRAError(f"Can't read {path}: {error.strerror or error}. Check its permissions.") from error
    if not size:
        raise HyperLoRAError(f"{path} is empty. {AGAIN}")
    return size, start


def _truncated(path: Path, size: int, whole: int | None) -> HyperLoRAError:
    of = f"{size} of {whole} bytes" if whole else f"{size} bytes, not even its header"
    return HyperLoRAError(f"{path} is incomplete: it holds {of}. {AGAIN}")


def _what_instead(path: Path, start: bytes) -> str:
    if start.lstrip().startswith(b"<"):
        return f"{path} is a web page that was saved under the name of a weights file. {AGAIN}"
    if start.startswith(LFS_POINTER):
        return f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` there, or: {cli('download')}"
    if start.startswith(PICKLE_STARTS):
        return (
            f"{path} holds pickled PyTorch weights, which can run code when they are opened, so they are refused. "
            "Use the .safetensors form of the same weights."
        )
    return f"{path} isn't a safetensors file. {AGAIN}"
