"""The shipped demo checkpoint: a narrow SDXL that paints 128 px portraits on any laptop."""

import logging
import shutil
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..hyperlora_core import HyperLoRAError
from ..hyperlora_core.files import written_aside
from . import folders
from .demo_host import load_demo_checkpoint
from .types import CATEGORY

PHOTO = "hyperlora_demo_person.png"


def offer_photo() -> None:
    """Put the demo template's photo beside the host's own example.png, so that its first Run ends in a picture."""
    target = Path(folder_paths.get_input_directory()) / PHOTO
    if target.exists():
        return
    try:
        with written_aside(target) as aside:
            shutil.copyfile(Path(__file__).parents[1] / "workflows" / PHOTO, aside)
    except HyperLoRAError as error:
        logging.warning("The demo template has no photo to start with: %s", error)


class HyperLoRALoadDemo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRALoadDemo",
            display_name="Load HyperLoRA Demo",
            category=CATEGORY,
            description="Loads the demo's small text-to-image model. Use it with the demo entries of the other loaders, at 128 x 128.",
            search_aliases=["hyperlora demo", "demo checkpoint", "example model"],
            inputs=[],
            outputs=[
                io.Model.Output("model", tooltip="A narrow SDXL: for Apply HyperLoRA or the sampler."),
                io.Clip.Output("clip", tooltip="For CLIP Text Encode."),
                io.Vae.Output("vae", tooltip="For VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_checkpoint(folders.demo_folder() / "sdxl"))
