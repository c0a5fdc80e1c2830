"""The command line: `hyperlora` or `python -m hyperlora_core`. A module per command, imported when it is asked for."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "photos in, LoRA and portrait out, on the shipped models",
    "generate": "write a person's LoRA from photos",
    "batch": "write identities and LoRAs of many people, a folder of photos each",
    "queue": "run a workflow for every person, prompt and seed on ComfyUI servers",
    "portrait": "paint a person from photos, without ComfyUI",
    "finetune": "train a person's LoRA a little further, on more photos",
    "transfer": "move LoRAs to another base model",
    "quantize": "write a HyperLoRA checkpoint with its basis in 8 bits, half the size",
    "download": "fetch weights into a ComfyUI models folder",
    "prepare": "search, judge, cut and caption photos of people for training",
    "train": "train HyperLoRA stage by stage, and the demo's models",
    "evaluate": "measure similarity and editability, on drawn people or on photos",
    "doctor": "say what is installed, found and missing, and how to mend it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 in part, 2 bad input or usage, 130 stopped by Ctrl-C.

    A command's module has `add_arguments`, `run`, and, where there is more to say when it is stopped, `STOPPED`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="hyperlora", description="A LoRA of a person for SDXL, from a few photos.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == asked:
            module = importlib.import_module(f".{name}", __name__)
            module.add_arguments(command)
            command.set_defaults(run=module.run, stopped=getattr(module, "STOPPED", "Stopped."))
    arguments = parser.parse_args(argv)
    from ..errors import HyperLoRAError

    try:
        return arguments.run(arguments)
    except HyperLoRAError as error:
        print(f"hyperlora {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{arguments.stopped}", file=sys.stderr)
        return 130
