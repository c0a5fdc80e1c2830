"""A ComfyUI to measure in, and photos for it: as the tests have them."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .speed.machine import ROOT

sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "host")]

from again import one_after_another, with_face_of
from comfyui import ComfyUI
from crowds import SIDE, column, crowd
from find import find_hosts
from graphs import demo, nodes_of
from people import photo_of, side_by_side

__all__ = [
    "SIDE",
    "ComfyUI",
    "column",
    "crowd",
    "demo",
    "nodes_of",
    "one_after_another",
    "own_server",
    "photo_of",
    "side_by_side",
    "with_face_of",
]


@contextmanager
def own_server(host: Path | None = None) -> Iterator[ComfyUI]:
    """A server with this pack, on the CPU, its files in a folder that goes afterwards. `host`: ComfyUI's folder."""
    hosts = [host.resolve()] if host else find_hosts()
    if not hosts:
        raise SystemExit("No ComfyUI was found: set COMFYUI_PATH, or name its folder.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = ComfyUI(hosts[0], Path(folder))
        try:
            yield server
        finally:
            server.stop()
