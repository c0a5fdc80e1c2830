"""Everything in one node: a photo in, the model with the person in it out."""

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..hyperlora_core import EncodeOptions
from ..hyperlora_core.prompt import with_trigger
from .apply import MERGE, mode_input, weight_inputs
from .types import CATEGORY, HyperLoRAModel, face_analysis_input


class HyperLoRAPortrait(io.ComfyNode):
    """Stands for Encode Identity, Generate LoRA and Apply HyperLoRA, and becomes these when it runs.

    So the host keeps what each of them made: another prompt, seed or weight doesn't read the photos again, and with the
    same weight the model stays patched. Their inputs are passed on as links (raw_link), by which the host knows them.
    """

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
                HyperLoRAModel.Input("hyperlora", raw_link=True, tooltip="From Load HyperLoRA."),
                face_analysis_input(raw_link=True),
                io.Model.Input("model", raw_link=True, tooltip="An SDXL model."),
                io.Image.Input("photos", raw_link=True, tooltip="Photos of ONE person, one or a batch."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What the picture shows."),
                *weight_inputs(),
                mode_input(advanced=True),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For the sampler."),
                io.String.Output("prompt", tooltip="With the trigger words, for CLIP Text Encode."),
            ],
            enable_expand=True,
        )

    @classmethod
    def execute(
        cls,
        hyperlora: list,
        face_analysis: list,
        model: list,
        photos: list,
        prompt: str,
        weight: float,
        base_weight: float = 0.4,
        mode: str = MERGE,
    ) -> io.NodeOutput:
        graph, usual = GraphBuilder(), EncodeOptions()
        encoded = graph.node(
            "HyperLoRAEncodeIdentity",
            hyperlora=hyperlora,
            face_analysis=face_analysis,
            photos=photos,
            face=usual.which,
            remove_background=usual.remove_background,
            grayscale=usual.grayscale,
        )
        written = graph.node("HyperLoRAGenerateLoRA", hyperlora=hyperlora, identity=encoded.out(0))
        applied = graph.node(
            "HyperLoRAApply",
            model=model,
            id_lora=written.out(0),
            weight=weight,
            base_lora=written.out(1),
            base_weight=base_weight,
            mode=mode,
        )
        return io.NodeOutput(applied.out(0), with_trigger(prompt), expand=graph.finalize())
