"""A person's LoRA on the model."""

from typing import NamedTuple

import comfy.lora
import comfy.sd
from comfy_api.latest import io

from ..hyperlora_core import HyperLoRAError, merge_branches
from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.block_weights import ALIKE, PRESETS, weigh_blocks
from ..hyperlora_core.lora import check_fits, check_weights, pairs
from ..hyperlora_core.schedule import ALWAYS, Schedule
from .bypass import put_beside
from .hooks import put_in_time, require_plain_weights
from .norms import merge_keeping_norms
from .types import CATEGORY

MERGE, BYPASS, GUIDE = MODES = ("merge", "bypass", "guide")


def weight_inputs() -> tuple[io.Float.Input, io.Float.Input]:
    limits = {"min": -2, "max": 2, "step": 0.05}
    return (
        io.Float.Input(
            "weight",
            default=0.8,
            **limits,
            tooltip="Strength of the face. 0.75 to 0.85 suits most checkpoints; 0 is off.",
        ),
        io.Float.Input(
            "base_weight",
            default=0.4,
            **limits,
            optional=True,
            tooltip="Strength of the photo's clothes, hair and background; 0 follows the prompt instead.",
        ),
    )


def time_inputs() -> tuple[io.Float.Input, io.Float.Input]:
    limits = {"min": 0.0, "max": 1.0, "step": 0.01, "optional": True, "advanced": True}
    return (
        io.Float.Input(
            "start",
            default=0.0,
            **limits,
            tooltip="From which share of sampling on the person takes part. 0.3 keeps the composition of the picture without.",
        ),
        io.Float.Input(
            "end", default=1.0, **limits, tooltip="Until which share of sampling the person takes part; 1: to its end."
        ),
    )


def mode_input(advanced: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=list(MODES),
        default=MERGE,
        optional=True,
        advanced=advanced,
        tooltip="merge: into the model's weights. bypass: beside them, so that another person or weight costs nothing, and "
        "quantised (fp8, GGUF) models keep their weights. guide: as bypass, but not for the negative prompt, so that CFG "
        "leads to the person, too: more likeness at the same weight.",
    )


def block_inputs() -> tuple[io.Combo.Input, io.String.Input]:
    return (
        io.Combo.Input(
            "blocks",
            options=list(PRESETS),
            default=ALIKE,
            optional=True,
            advanced=True,
            tooltip="Where in the model the person counts. face only: less of the photo's framing and light. soft: less of "
            "its surface. anti-artefact: less in the finest lines.",
        ),
        io.String.Input(
            "block_weights",
            default="",
            optional=True,
            advanced=True,
            tooltip="Your own, over the preset's: down 1, middle 1, up 0.8, or block by block: up_blocks.1 = 0.5.",
        ),
    )


class HyperLoRAApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        weight, base_weight = weight_inputs()
        return io.Schema(
            node_id="HyperLoRAApply",
            display_name="Apply HyperLoRA",
            category=CATEGORY,
            description="Puts a person's LoRA on the model. A LoRA that doesn't fit the model is an error, never ignored.",
            search_aliases=["hyperlora apply", "patch model", "face lora", "apply identity", "bypass lora"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model."),
                io.LoraModel.Input("id_lora", tooltip="From Generate LoRA."),
                weight,
                io.LoraModel.Input(
                    "base_lora", optional=True, tooltip="From Generate LoRA, where the checkpoint has a base branch."
                ),
                base_weight,
                # last and optional: workflows from before it was there still run
                mode_input(),
                *time_inputs(),
                *block_inputs(),
                io.Boolean.Input(
                    "keep_norms",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Gentle: the LoRA turns the weights but doesn't lengthen them (DoRA's magnitude "
                    "stays). Only in merge mode.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        id_lora: LoRA,
        weight: float,
        base_lora: LoRA | None = None,
        base_weight: float = 0.4,
        mode: str = MERGE,
        start: float = 0.0,
        end: float = 1.0,
        blocks: str = ALIKE,
        block_weights: str = "",
        keep_norms: bool = False,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            apply(
                model,
                id_lora,
                weight,
                base_lora=base_lora,
                base_weight=base_weight,
                mode=mode,
                schedule=Schedule(start, end),
                blocks=blocks,
                block_weights=block_weights,
                keep_norms=keep_norms,
            )
        )


def apply(
    model,
    id_lora: LoRA,
    weight: float,
    *,
    base_lora: LoRA | None = None,
    base_weight: float = 0.4,
    mode: str = MERGE,
    schedule: Schedule = ALWAYS,
    blocks: str = ALIKE,
    block_weights: str = "",
    keep_norms: bool = False,
):
    """A clone of the model with ID and base as one: one patch per weight, or in the other modes one product per layer."""
    if keep_norms and mode != MERGE:
        raise HyperLoRAError(
            f"keep_norms needs the model's weights, which mode {mode} never touches: choose merge, or turn it off."
        )
    if keep_norms and not schedule.always:
        raise HyperLoRAError("keep_norms holds for all of sampling: set start to 0 and end to 1, or turn it off.")
    lora, strength = one_lora(id_lora, weight, base_lora, base_weight)
    layers = model_layers(model)
    # checked at weight 0 too, so that a wrong pair shows before somebody turns the weight up
    check_fits(lora, {key: layer.shape for key, layer in layers.items()})
    lora = weigh_blocks(lora, block_weights, blocks)
    if strength == 0:
        return model
    if keep_norms:
        return merge_keeping_norms(model, lora, strength)
    if mode == MERGE:
        if schedule.always:
            return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]
        require_plain_weights(model, [layers[pair.key].path for pair in pairs(lora)], "mode bypass")
        return put_in_time(model, lora, strength, schedule)
    if strength != 1:
        lora = merge_branches(lora, None, strength)
    return put_beside(model, lora, {key: layer.path for key, layer in layers.items()}, schedule, mode == GUIDE)


def one_lora(id_lora: LoRA, weight: float, base_lora: LoRA | None, base_weight: float) -> tuple[LoRA, float]:
    """ID and base as one LoRA, and the strength at which it is meant."""
    check_weights(weight, base_weight)
    if id_lora is None:
        raise HyperLoRAError(
            "id_lora is empty: this checkpoint has no base branch. Wire id_lora, or the slider's own LoRA."
        )
    if base_lora is None or base_weight == 0:
        return id_lora, weight  # as core's Load LoRA does it, to the last bit
    return merge_branches(id_lora, base_lora, weight, base_weight), 1.0


class Layer(NamedTuple):
    """A layer of the model that a LoRA key names."""

    path: str
    shape: tuple[int, ...]  # (out, in, ...) of its weight


def model_layers(model) -> dict[str, Layer]:
    """LoRA key -> layer. A linear layer's own sizes count: a quantised weight is stored in another shape."""
    modules = dict(model.model.named_modules())
    layers = {}
    for key, name in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        path = name.removesuffix(".weight") if isinstance(name, str) else None
        module = modules.get(path)
        if hasattr(module, "in_features"):
            layers[key] = Layer(path, (module.out_features, module.in_features))
        elif getattr(module, "weight", None) is not None:
            layers[key] = Layer(path, tuple(module.weight.shape))
    return layers
