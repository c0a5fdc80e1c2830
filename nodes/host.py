"""Our models in the host's hands: it decides where they lie, and frees them when a sampler needs the room."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ..hyperlora_core import HyperLoRA, VisionEncoder, load_hyperlora
from ..hyperlora_core.basis import Basis
from ..hyperlora_core.precision import fast_half

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EIGHT_BIT = "int8"  # the basis; computed in the automatic precision


class LoadedHyperLoRA:
    """What a HYPERLORA wire carries: a checkpoint, and the CLIP tower that it reads photos with."""

    def __init__(self, path: Path, find_clip_tower: Callable[[int], Path], precision: str):
        """`find_clip_tower` answers the tower's file for a token width; it is asked when the first photo is read."""
        dtype = PRECISIONS.get(precision) or automatic_precision(comfy.model_management.get_torch_device())
        self.hyper = load_hyperlora(
            path,
            dtype=dtype,
            operations=comfy.ops.manual_cast,
            eight_bit=precision == EIGHT_BIT,
            progress=progress(),
        )
        self.find_clip_tower = find_clip_tower
        # the host's cache accounting looks for this name
        self.patcher, _ = hand_over(self.hyper, [self.hyper.basis, self.hyper.encoder])

    @cached_property
    def vision(self) -> VisionEncoder | None:
        """Loaded on first use: a saved identity needs no tower."""
        if self.hyper.clip_width is None:
            return None
        vision = VisionEncoder.load(self.find_clip_tower(self.hyper.clip_width), dtype=self.hyper.dtype)
        hand_over(vision, [vision.tower])
        return vision


def automatic_precision(device: torch.device) -> torch.dtype:
    """Half precision where the device multiplies it fast; of the CPU's that is measured."""
    if comfy.model_management.is_device_cpu(device):
        return fast_half("cpu") or torch.float32
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """For what the host can't cast layer by layer: it is on the device as a whole, or not at all.

    Dynamic VRAM, which casts layer by layer, would bring all of it anew for each use.
    """

    def pin_weight_to_device(self, key: str) -> None:
        """Not for the basis, which is mapped from its file: page-locking reads all of it into memory of its own."""


def hand_over(
    owner: HyperLoRA | VisionEncoder, modules: list[torch.nn.Module]
) -> list[comfy.model_patcher.ModelPatcher]:
    """Let the host move the owner's modules: from now on it brings one onto the device before each use."""
    patchers = {
        module: (comfy.model_patcher.CoreModelPatcher if in_layers(module) else WholePatcher)(
            module,
            load_device=comfy.model_management.get_torch_device(),
            # what doesn't fit has to go somewhere else, also where the host keeps its own models on the device
            offload_device=comfy.model_management.unet_offload_device() if in_layers(module) else torch.device("cpu"),
        )
        for module in modules
    }

    def bring(module: torch.nn.Module) -> torch.device:
        patcher = patchers[module]
        if in_layers(module):
            comfy.model_management.load_models_gpu([patcher])
            return patcher.load_device
        if brought_whole(patcher):
            return patcher.load_device
        if isinstance(module, Basis):
            # it comes tensor by tensor while it is mixed: there is always room for one
            logging.warning(
                f"HyperLoRA: no room on {patcher.load_device} for the basis: it is mixed from main memory, slower."
            )
            return patcher.load_device
        logging.warning(f"HyperLoRA: no room on {patcher.load_device} for the CLIP tower: it runs on the CPU, slower.")
        return torch.device("cpu")

    owner.bring = bring
    return list(patchers.values())


def in_layers(module: torch.nn.Module) -> bool:
    """Whether the host can leave some of the module's layers in main memory and bring each when it is needed."""
    return any(hasattr(layer, "comfy_cast_weights") for layer in module.modules())


def brought_whole(patcher: WholePatcher) -> bool:
    """Whether the device had room for all of the model; else none of it is there."""
    try:
        comfy.model_management.load_models_gpu([patcher])
        there = {tensor.device.type for tensor in patcher.model.parameters()} == {patcher.load_device.type}
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
        there = False
    if not there:
        patcher.detach()
        comfy.model_management.soft_empty_cache()
    return there


def progress(total: int = 1) -> Callable[[int, int], None]:
    """A progress bar on the running node; each step stops the run if the user asked for it.

    `total` goes until the first step says more.
    """
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return step
