"""A face pack's folder: which ONNX file holds which network, told from the inputs and outputs of each graph.

Only the few bytes that describe them are read, so a pack's 400 MB cost nothing, and a damaged file is named before
anything is built from it.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import HyperLoRAError, cli

DETECTION, LANDMARKS, RECOGNITION = TASKS = ("detection", "landmark_2d_106", "recognition")

NETWORKS = {
    DETECTION: "the face detector (such as scrfd_10g_bnkps.onnx or det_10g.onnx)",
    LANDMARKS: "the 106 landmarks (2d106det.onnx)",
    RECOGNITION: "face recognition (glintr100.onnx in antelopev2)",
}
REMEDY = f"Run: {cli('download antelopev2')}"

# field numbers of onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 5, 11, 12
_VALUE_NAME, _VALUE_TYPE, _TENSOR_NAME = 1, 2, 8
_TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM, _DIM_VALUE = 1, 2, 1, 1


class Signature(NamedTuple):
    """What a graph takes and gives: shapes with 0 for a free dimension."""

    inputs: list[list[int]]
    outputs: list[list[int]]


def find_networks(folder: str | Path) -> dict[str, Path]:
    """Task name -> file for the three networks needed, from a folder of a face pack or the folder right above it.

    Where a pack holds two files for one task, the first by name counts, as for InsightFace. Raises HyperLoRAError when
    the folder, a network, or part of a file is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HyperLoRAError(f"The face pack's folder {folder} doesn't exist. {REMEDY}")
    files = sorted(folder.glob("*.onnx"))
    if not files:
        # unzipped one level too deep: antelopev2/antelopev2/
        inner = sorted(path.parent for path in folder.glob("*/*.onnx"))
        if not inner:
            raise HyperLoRAError(f"The face pack's folder {folder} holds no .onnx files. {REMEDY}")
        folder = folder / folder.name if folder / folder.name in inner else inner[0]
        files = sorted(folder.glob("*.onnx"))
    found: dict[str, Path] = {}
    damaged: list[HyperLoRAError] = []
    for file in files:
        try:
            task = task_of(read_signature(file))
        except HyperLoRAError as error:
            damaged.append(error)  # matters only when it is one of the three
            continue
        if task in TASKS:
            found.setdefault(task, file)
    if damaged and len(found) < len(TASKS):
        raise damaged[0]
    missing = [NETWORKS[task] for task in TASKS if task not in found]
    if missing:
        raise HyperLoRAError(f"The face pack {folder} lacks {' and '.join(missing)}. {REMEDY}")
    return found


def task_of(signature: Signature) -> str | None:
    """InsightFace's name for what a graph does, by the same signs that InsightFace goes by; None when it has none."""
    if len(signature.outputs) >= 5:
        return DETECTION
    if len(signature.inputs) != 1 or len(signature.inputs[0]) != 4:
        return None
    height, width = signature.inputs[0][2:]
    if height != width:
        return None
    if width == 192:
        return LANDMARKS if signature.outputs[0][1:] == [212] else "landmark_3d_68"
    if width == 96:
        return "genderage"
    return RECOGNITION if width >= 112 and width % 16 == 0 else None


def read_signature(path: Path) -> Signature:
    """The shapes of an ONNX file's inputs and outputs, weights skipped. Raises HyperLoRAError on damaged files."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if not head or head.lstrip()[:1] == b"<" or head.startswith(b"version https"):
                raise HyperLoRAError(
                    f"{path} is an empty file, a web page or a Git LFS pointer instead of a network: download it again."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_graph(data)
    except OSError as error:
        raise HyperLoRAError(f"{path} can't be read: {error.strerror or error}. Check its permissions.") from error
    except (IndexError, EOFError) as error:
        raise HyperLoRAError(f"{path} is cut off or isn't an ONNX network: download it again.") from error


def _read_graph(data: mmap.mmap) -> Signature:
    graphs = [part for number, *part in _fields(data, 0, len(data)) if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise EOFError
    weights: set[bytes] = set()
    inputs: list[tuple[int, int]] = []
    outputs: list[tuple[int, int]] = []
    for number, start, stop in _fields(data, *graphs[0]):
        if number == _GRAPH_INITIALIZER:
            weights.add(_text(data, start, stop, _TENSOR_NAME))
        elif number == _GRAPH_INPUT:
            inputs.append((start, stop))
        elif number == _GRAPH_OUTPUT:
            outputs.append((start, stop))
    if not inputs or not outputs:
        raise EOFError
    # files of the mxnet age list their weights among the inputs
    true_inputs = [part for part in inputs if _text(data, *part, _VALUE_NAME) not in weights]
    return Signature([_shape(data, *part) for part in true_inputs], [_shape(data, *part) for part in outputs])


def _shape(data: mmap.mmap, start: int, stop: int) -> list[int]:
    """A ValueInfoProto's dimensions."""
    parts = [(start, stop)]
    for wanted in (_VALUE_TYPE, _TYPE_TENSOR, _TENSOR_SHAPE, _SHAPE_DIM):
        parts = [(begin, end) for part in parts for number, begin, end in _fields(data, *part) if number == wanted]
    return [_dimension(data, *part) for part in parts]


def _dimension(data: mmap.mmap, start: int, stop: int) -> int:
    if start < stop and data[start] == _DIM_VALUE << 3:
        return _varint(data, start + 1)[0]
    return 0


def _text(data: mmap.mmap, start: int, stop: int, wanted: int) -> bytes:
    return next((data[begin:end] for number, begin, end in _fields(data, start, stop) if number == wanted), b"")


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, stop) of a protobuf message's length-delimited fields; the other kinds are passed over.

    Raises EOFError where the message reaches beyond its end, IndexError where the file does.
    """
    while start < stop:
        key, start = _varint(data, start)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, start = _varint(data, start)
        elif kind == 1:
            start += 8
        elif kind == 2:
            length, start = _varint(data, start)
            if start + length > stop:
                raise EOFError
            yield number, start, start + length
            start += length
        elif kind == 5:
            start += 4
        else:
            raise EOFError
    if start != stop:
        raise EOFError


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A protobuf variable-length number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise EOFError
