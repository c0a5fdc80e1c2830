"""A method of `hyperlora evaluate` that a ComfyUI server paints: its workflow, run by `hyperlora queue`."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

from ..errors import HyperLoRAError
from ..evaluate.protocol import NONE
from . import queue


class WorkflowMethod(NamedTuple):
    """A method that a ComfyUI server paints."""

    name: str
    file: str
    folder: Path  # of its pictures
    number: str  # "#N", or nothing

    @property
    def pictures(self) -> str:
        return f"{self.name}={self.folder}{self.number}"

    def run(self, arguments: Namespace) -> None:
        """Paint what isn't there yet. Raises HyperLoRAError where pictures fail."""
        parser = ArgumentParser()
        queue.add_arguments(parser)
        asked = [self.file, "--out", str(self.folder), "--prompts", str(arguments.prompts), "--seeds", arguments.seeds]
        if self.name != NONE:
            asked += ["--photos", str(arguments.photos)]
        if arguments.server:
            asked += ["--server", *arguments.server]
        if queue.run(parser.parse_args(asked)):
            raise HyperLoRAError(
                f'Some pictures of "{self.name}" failed, see above: the same command tries them again.'
            )


def read_workflow_method(text: str, out: Path) -> WorkflowMethod:
    """NAME=FILE[#N]; one file's pictures lie in one folder, for all the methods that it paints."""
    name, _, place = text.partition("=")
    file, mark, number = place.partition("#")
    if not (name and file) or (mark and not number.isdecimal()):
        raise HyperLoRAError(f"--workflow {text} isn't NAME=FILE, or NAME=FILE#N.")
    return WorkflowMethod(name, file, out / "comfyui" / Path(file).stem, mark + number)
