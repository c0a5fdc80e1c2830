"""Loading the checkpoint and the CLIP tower: seconds, and memory beyond the mapped files."""

from safetensors import safe_open

from hyperlora_core.checkpoint import MODULES, find_parts

from .bench import Bench, Budget
from .ceilings import PRECISIONS, Work
from .children import in_child

GROUP = "load"
MOST_SECONDS, MOST_BYTES = 1.0, 0.5e9
GB = 1e9


def measure(bench: Bench) -> None:
    """In a child process, since memory that was ever used may stay with a process."""
    source = find_parts(bench.checkpoint)
    encoder, basis = [], 0
    for part, (file, prefix) in source.files.items():
        with safe_open(file, framework="pt") as opened:
            tensors = [opened.get_tensor(prefix + name) for name in source.shapes[part]]
        if part == MODULES:
            basis = sum(tensor.nbytes for tensor in tensors)
        else:
            encoder += tensors
    held = sum(tensor.numel() for tensor in encoder) * PRECISIONS[bench.precision].itemsize
    # as it is in the file already, nothing is converted, and nothing needs to be ours
    converted = [tensor for tensor in encoder if tensor.dtype != PRECISIONS[bench.precision]]
    moved = sum(t.nbytes + t.numel() * PRECISIONS[bench.precision].itemsize for t in converted)
    on_cpu = bench.device.type == "cpu"

    bench.starting("load: in a child process")
    figures = in_child(
        "load",
        checkpoint=str(bench.checkpoint.resolve()),
        clip=str(bench.clip.resolve()),
        precision=bench.precision,
        device=str(bench.device),
        repetitions=bench.repetitions,
    )
    bench.add(
        GROUP,
        f"checkpoint, {bench.precision}",
        figures["checkpoint"],
        works=[Work(moved=moved, uploaded=0 if on_cpu else basis + held)],
        budget=Budget(MOST_SECONDS, of_floor=False) if on_cpu else None,
        note="files in the page cache; floor: converting the encoder" + ("" if on_cpu else " and uploading all"),
    )
    bench.add(
        GROUP,
        "own memory at its peak, beyond mapped files",
        figures["checkpoint bytes"] / GB,
        "GB",
        floor=held / GB if on_cpu and converted else None,
        budget=Budget(MOST_BYTES / GB, of_floor=False),
        note="floor: the encoder in this precision",
    )
    bench.add(GROUP, f"CLIP tower, {bench.precision}", figures["clip"], note="open_clip imported before")
