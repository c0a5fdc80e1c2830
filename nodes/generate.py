"""A checkpoint, and the LoRAs that it writes."""

from comfy_api.latest import io

from ..hyperlora_core import Identity
from ..hyperlora_core.basis import LoRA
from . import folders, host
from .types import CATEGORY, HyperLoRAModel, IdentityType


class HyperLoRALoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRALoadModel",
            display_name="Load HyperLoRA",
            category=CATEGORY,
            description="Loads a HyperLoRA checkpoint, and the CLIP image tower that it reads. Sizes are read from the files.",
            search_aliases=["hyperlora loader", "hyper lora", "identity", "face lora"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=folders.checkpoint_names(),
                    tooltip="A checkpoint from models/hyper_lora: a folder as published, or one file. "
                    "fidelity looks most like the person, edit follows the prompt more.",
                ),
                io.Combo.Input(
                    "precision",
                    options=[folders.AUTO, *host.PRECISIONS, host.EIGHT_BIT],
                    default=folders.AUTO,
                    advanced=True,
                    tooltip="Precision of the computation. auto: fp16 on a GPU, bf16 on a CPU, where these are fast in it, else fp32. "
                    "int8: as auto, with a basis in 8 bits, which takes half the memory.",
                ),
                io.Combo.Input(
                    "clip_vision",
                    options=[folders.AUTO, *folders.clip_tower_names()],
                    default=folders.AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="The CLIP image tower. auto: the one in models/clip_vision that fits (OpenAI's CLIP ViT-L/14).",
                ),
            ],
            outputs=[HyperLoRAModel.Output("hyperlora", tooltip="For Encode Identity and Generate LoRA.")],
        )

    @classmethod
    def execute(cls, checkpoint: str, precision: str, clip_vision: str = folders.AUTO) -> io.NodeOutput:
        def find_clip_tower(width: int):
            if clip_vision == folders.AUTO:
                return folders.find_clip_tower(width)
            return folders.clip_tower_path(clip_vision)

        return io.NodeOutput(host.LoadedHyperLoRA(folders.checkpoint_path(checkpoint), find_clip_tower, precision))


class HyperLoRAGenerateLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRAGenerateLoRA",
            display_name="Generate LoRA",
            category=CATEGORY,
            description="Writes a person's LoRA: an ordinary LoRA for SDXL, for Apply, Save or core's own LoRA nodes.",
            search_aliases=["hyperlora generate", "identity to lora", "lora from photo"],
            inputs=[
                HyperLoRAModel.Input("hyperlora", tooltip="The checkpoint that encoded the identity."),
                IdentityType.Input("identity", tooltip="From Encode, Load or Blend."),
            ],
            outputs=[
                io.LoraModel.Output("id_lora", tooltip="The face."),
                io.LoraModel.Output(
                    "base_lora",
                    tooltip="Clothes, hair and background of the photo; only where the checkpoint has a base branch.",
                ),
            ],
        )

    @classmethod
    def execute(cls, hyperlora: host.LoadedHyperLoRA, identity) -> io.NodeOutput:
        return io.NodeOutput(*generate(hyperlora, identity))


def generate(loaded: host.LoadedHyperLoRA, identity: Identity) -> tuple[LoRA, LoRA | None]:
    """ID and base LoRA; base is None without a base branch."""
    hyper = loaded.hyper
    identity.require_checkpoint(hyper)
    base = None
    if hyper.has_base and identity.base_coefficients is not None:
        base = on_cpu(hyper.lora(identity.base_coefficients, "base"))
    return on_cpu(hyper.lora(identity.coefficients, "id")), base


def on_cpu(lora: LoRA) -> LoRA:
    """As LORA_MODEL wires expect it."""
    return {name: tensor.cpu() for name, tensor in lora.items()}
