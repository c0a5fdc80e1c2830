"""When the authors' pack is installed too: one id can mean one node only, and the host keeps the one that came last.

Theirs stay theirs, whichever pack is loaded first. HyperLoRASaveLoRA, which our own workflows need as well, is ours: it
takes what theirs takes.
"""

import logging
import sys

from comfy_api.latest import io

from .legacy import NODES
from .save import HyperLoRASaveLoRA

SAVE = "HyperLoRASaveLoRA"


def free_nodes() -> list[type[io.ComfyNode]]:
    """Our nodes under the authors' ids, without those that another pack has registered already."""
    registered = _registered()
    return [node for node in NODES if node.__name__ not in registered]


def settle_at_start() -> None:
    """Look again when the server starts: all packs are loaded then."""
    # asked for, not imported: a tool that only reads our nodes has no server
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.app.on_startup.append(_settle)


async def _settle(_app) -> None:
    registered = _registered()
    theirs = [node.__name__ for node in NODES if registered.get(node.__name__, node) is not node]
    if not theirs and registered.get(SAVE) is HyperLoRASaveLoRA:
        return
    registered[SAVE] = HyperLoRASaveLoRA
    logging.warning(
        "Another pack (the authors' ComfyUI-HyperLoRA?) has nodes of the same names as the old ones here. Theirs run: %s. "
        "%s is ours. Workflows of that pack run without it too: remove it, and all nodes are ours.",
        ", ".join(theirs) or "none",
        SAVE,
    )


def _registered() -> dict:
    """The host's nodes by id; empty where no host runs."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
