"""The shipped demo checkpoint: a narrow SDXL that paints 128 px portraits on any laptop."""

from comfy_api.latest import io

from . import folders
from .demo_host import load_demo_checkpoint
from .types import CATEGORY


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
