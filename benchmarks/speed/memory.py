"""A process's own memory, by the operating system's accounting: mapped files are the page cache's, not ours."""

import sys
import threading
from pathlib import Path
from typing import NamedTuple

from hyperlora_core.packages import require

EVERY = 0.001  # s between two looks


def own_bytes() -> int:
    """Of this process, in main memory and not backed by a file."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("RssAnon:")[2].split()[0])
    return require("psutil", "Measuring memory").Process().memory_full_info().uss


class Memory(NamedTuple):
    """Bytes of a process in main memory.

    rss   all, mapped files too
    pss   the same, what several processes share divided among them; None where the system doesn't count it
    own   what no file stands behind (Linux), or what is no other process's
    """

    rss: int
    pss: int | None
    own: int


def memory_of(process: int) -> Memory:
    """Of any process of this user, by its id."""
    if sys.platform == "linux":
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        sizes = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        return Memory(sizes["Rss"], sizes["Pss"], sizes["Anonymous"])
    counted = require("psutil", "Measuring memory").Process(process).memory_full_info()
    return Memory(counted.rss, None, counted.uss)


class Peak:
    """The most that `own_bytes` came to while the block ran, beyond what it was before."""

    def __enter__(self) -> "Peak":
        self._before = self._most = own_bytes()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(EVERY):
            self._most = max(self._most, own_bytes())

    def __exit__(self, *_) -> None:
        self._done.set()
        self._watch.join()
        self._most = max(self._most, own_bytes())

    @property
    def bytes(self) -> int:
        return self._most - self._before
