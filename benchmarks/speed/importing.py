"""What registering the pack costs beyond the host; each time in a new process."""

from .bench import Bench, Budget
from .children import in_child

GROUP = "import"
MOST = 0.1  # s


def measure(bench: Bench) -> None:
    for function, name, budget, note in (
        ("import_library", "import hyperlora_core", None, ""),
        (
            "import_pack",
            "registering the nodes",
            Budget(MOST, of_floor=False),
            "beyond torch and what else every ComfyUI imports; the host's own modules are stand-ins",
        ),
    ):
        measured = []
        for number in range(bench.repetitions):
            bench.starting(f"{GROUP}: {name}, process {number + 1}")
            measured.append(in_child(function)["seconds"])
        bench.add(GROUP, name, measured, budget=budget, note=note)
