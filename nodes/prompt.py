"""The words that wake an identity."""

from comfy_api.latest import io

from ..hyperlora_core.prompt import with_trigger
from .types import CATEGORY


class HyperLoRATriggerPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRATriggerPrompt",
            display_name="Trigger Prompt",
            category=CATEGORY,
            description="Puts HyperLoRA's trigger words in front of a prompt, once. Without them pictures look less like the person.",
            search_aliases=["trigger words", "fcsks fxhks fhyks", "hyperlora prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the picture shows. The trigger words are added; a second time they are not.",
                ),
            ],
            outputs=[io.String.Output("prompt", tooltip="For a CLIP Text Encode node.")],
        )

    @classmethod
    def execute(cls, prompt: str) -> io.NodeOutput:
        return io.NodeOutput(with_trigger(prompt))
