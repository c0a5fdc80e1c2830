"""A person's LoRA moved to another base model."""

import weakref
from typing import NamedTuple

import comfy.lora
import comfy.model_management
import torch
from comfy_api.latest import io

from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.lora import attention_path
from ..hyperlora_core.transfer import DIRECTIONS, THRESHOLD, Bridge, transfer
from . import host
from .apply import model_layers
from .types import CATEGORY


class HyperLoRATransfer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperLoRATransfer",
            display_name="Move LoRA to Another Base",
            category=CATEGORY,
            description="Moves a LoRA to another base model without training (LoRA-X): another SDXL checkpoint, or a pruned "
            "one such as SSD-1B.",
            search_aliases=[
                "lora-x",
                "transfer lora",
                "convert lora",
                "SSD-1B",
                "Segmind Vega",
                "KOALA",
                "cross model",
            ],
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Generate LoRA, or any LoRA of attention layers only."),
                io.Model.Input("source", tooltip="The model that the LoRA was made for; for HyperLoRA plain SDXL."),
                io.Model.Input("target", tooltip="The model that it is wanted for."),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Layers less alike in both models than this are left out. 1 is the same; unrelated ones reach "
                    "about 0.13.",
                ),
                io.Float.Input(
                    "directions",
                    default=DIRECTIONS,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    optional=True,
                    tooltip="Share of the target's directions that the change may use, the strongest first. 1: all, so that a "
                    "layer of the same width keeps its change as it is. Fewer (LoRA-X's way) left less of the person wherever it "
                    "was measured.",
                ),
            ],
            outputs=[
                io.LoraModel.Output("lora", tooltip="For Apply HyperLoRA on the target, or Save Person's LoRA."),
                io.String.Output("report", tooltip="How alike the layers are, what was left out, and what is kept."),
            ],
        )

    @classmethod
    def execute(cls, lora: LoRA, source, target, threshold: float, directions: float = DIRECTIONS) -> io.NodeOutput:
        moved = transfer(
            lora,
            HostLayers(source),
            HostLayers(target),
            threshold,
            bridge_between(source, target, directions),
            comfy.model_management.get_torch_device(),
            host.progress(len(lora) // 3),
        )
        return io.NodeOutput(moved.lora, moved.report, ui={"text": [moved.summary, *moved.left_out]})


class HostLayers:
    """The attention layers of a MODEL as it samples: with its patches, but for bypassed and timed LoRAs."""

    def __init__(self, model):
        layers = {attention_path(key): layer for key, layer in model_layers(model).items()}
        layers.pop(None, None)
        self.shapes = {path: layer.shape for path, layer in layers.items()}
        keys = {path: f"{layer.path}.weight" for path, layer in layers.items()}
        # the weights as they were before the host patched them for the GPU, each with what is patched on
        patched = model.get_key_patches("diffusion_model.")
        self._patched = {path: (key, patched[key]) for path, key in keys.items()}

    def weight(self, path: str) -> torch.Tensor:
        key, ((weight, convert), *patches) = self._patched[path]
        device = comfy.model_management.get_torch_device()
        weight = comfy.model_management.cast_to_device(weight, device, torch.float32, copy=True)
        weight = convert(weight, inplace=True)
        return comfy.lora.calculate_weight(patches, weight, key) if patches else weight


class Known(NamedTuple):
    """What was found out about two models, and which state of them it holds for."""

    target: weakref.ref
    state: tuple
    bridge: Bridge


# For the last two models only, and while the source lives: the next person goes across without decompositions.
_known: "weakref.WeakKeyDictionary[torch.nn.Module, Known]" = weakref.WeakKeyDictionary()


def bridge_between(source, target, directions: float) -> Bridge:
    """The Bridge of these two MODELs as they are patched, a new one where the last one was between others."""
    state = source.patches_uuid, target.patches_uuid, directions
    known = _known.get(source.model)
    if known is None or known.target() is not target.model or known.state != state:
        _known.clear()
        known = _known[source.model] = Known(weakref.ref(target.model), state, Bridge(directions))
    return known.bridge
