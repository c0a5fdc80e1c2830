"""Sliders: what two photos differ in, as a LoRA of its own."""

from comfy_api.latest import io

from ..hyperlora_core import Identity
from ..hyperlora_core.slider import AMOUNT, slider_lora
from . import host
from .generate import on_cpu
from .types import CATEGORY, HyperLoRAModel, IdentityType


class HyperLoRASlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRASlider",
            display_name="Identity Slider",
            category=CATEGORY,
            description="What two photos differ in (a smile, glasses, age) as a LoRA, to add to any person or take away.",
            search_aliases=["concept slider", "smile slider", "age slider", "attribute", "lora difference"],
            inputs=[
                HyperLoRAModel.Input("hyperlora", tooltip="The checkpoint that encoded both identities."),
                IdentityType.Input("identity_from", tooltip="The negative end, such as a photo without a smile."),
                IdentityType.Input("identity_to", tooltip="The positive end, such as the same person smiling."),
                io.Float.Input(
                    "amount",
                    default=AMOUNT,
                    min=-1.5,
                    max=1.5,
                    step=0.05,
                    tooltip="How far, and which way: above 0 towards identity_to, below 0 the other way, 0 is off.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    "slider_lora", tooltip="For a second Apply HyperLoRA at weight 1, after the person's own."
                ),
                io.LoraModel.Output(
                    "base_slider_lora",
                    tooltip="The same for clothes, hair and background; only where the checkpoint has a base branch.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, hyperlora: host.LoadedHyperLoRA, identity_from: Identity, identity_to: Identity, amount: float
    ) -> io.NodeOutput:
        def lora(branch: str):
            return on_cpu(slider_lora(hyperlora.hyper, identity_from, identity_to, amount, branch))

        return io.NodeOutput(lora("id"), lora("base") if hyperlora.hyper.has_base else None)
