"""A method of `hyperlora evaluate` that a ComfyUI server paints: its workflow, run by `hyperlora queue`."""

import hashlib
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


def read_workflow_method(text: str, out: Path, prompts: str | Path) -> WorkflowMethod:
    """NAME=FILE[#N]; pictures of one workflow and one list of prompts lie in one folder, for all the methods that it paints.

    Other content gets another folder: the pictures' names tell prompts by their numbers, and workflows not at all.
    """
    name, _, place = text.partition("=")
    file, mark, number = place.partition("#")
    if not (name and file) or (mark and not number.isdecimal()):
        raise HyperLoRAError(f"--workflow {text} isn't NAME=FILE, or NAME=FILE#N.")
    digest = hashlib.sha256()
    for path in (file, prompts):
        try:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
        except OSError as error:
            raise HyperLoRAError(f"{path} can't be read ({error.strerror}): see that it is there.") from error
    folder = out / "comfyui" / f"{Path(file).stem}-{digest.hexdigest()[:8]}"
    return WorkflowMethod(name, file, folder, mark + number)
