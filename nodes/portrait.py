"""Everything in one node: a photo in, the model with the person in it out."""

from comfy_api.latest import io

from ..hyperlora_core import EncodeOptions
from ..hyperlora_core.prompt import with_trigger
from . import host
from .apply import MERGE, apply, mode_input, weight_inputs
from .generate import generate
from .identity import encode
from .types import CATEGORY, FaceAnalysis, HyperLoRAModel


class HyperLoRAPortrait(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRAPortrait",
            display_name="HyperLoRA Portrait",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Puts the person of the photos into the model, and the trigger words in front of the prompt. "
            "The largest face of each photo is taken.",
            search_aliases=["hyperlora", "face", "identity", "instantid", "pulid", "ip-adapter faceid", "portrait"],
            inputs=[
                HyperLoRAModel.Input("hyperlora", tooltip="From Load HyperLoRA."),
                FaceAnalysis.Input("face_analysis", tooltip="From Load Face Analysis, or another pack's loader."),
                io.Model.Input("model", tooltip="An SDXL model."),
                io.Image.Input("photos", tooltip="Photos of ONE person, one or a batch."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What the picture shows."),
                *weight_inputs(),
                mode_input(advanced=True),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For the sampler."),
                io.String.Output("prompt", tooltip="With the trigger words, for CLIP Text Encode."),
            ],
        )

    @classmethod
    def execute(
        cls,
        hyperlora: host.LoadedHyperLoRA,
        face_analysis,
        model,
        photos,
        prompt: str,
        weight: float,
        base_weight: float = 0.4,
        mode: str = MERGE,
    ) -> io.NodeOutput:
        encoded = encode(hyperlora, face_analysis, list(photos), EncodeOptions())
        id_lora, base_lora = generate(hyperlora, encoded.identity)
        patched = apply(model, id_lora, weight, base_lora=base_lora, base_weight=base_weight, mode=mode)
        return io.NodeOutput(patched, with_trigger(prompt))
