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
from ..hyperlora_core.hyperlora import where_it_is
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


def patcher_of(module: torch.nn.Module) -> type:
    """Core's usual one, but for the basis: dynamic VRAM casts layer by layer, and would bring all of the basis for each LoRA."""
    return comfy.model_patcher.ModelPatcher if isinstance(module, Basis) else comfy.model_patcher.CoreModelPatcher


def hand_over(
    owner: HyperLoRA | VisionEncoder, modules: list[torch.nn.Module]
) -> list[comfy.model_patcher.ModelPatcher]:
    """Let the host move the owner's modules: from now on it brings one onto the device before each use."""
    patchers = {
        module: patcher_of(module)(
            module,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        for module in modules
    }

    def bring(module: torch.nn.Module) -> torch.device:
        device = patchers[module].load_device
        try:
            comfy.model_management.load_models_gpu([patchers[module]])
            there = where_it_is(module).type == device.type
        except Exception as error:
            if not (isinstance(module, Basis) and comfy.model_management.is_oom(error)):
                raise
            patchers[module].detach()
            comfy.model_management.soft_empty_cache()
            there = False
        if isinstance(module, Basis) and not there:
            # it comes tensor by tensor while it is mixed: there is always room for one
            logging.warning(f"HyperLoRA: no room on {device} for the basis: it is mixed from main memory, slower.")
        return device

    owner.bring = bring
    return list(patchers.values())


def progress(total: int = 1) -> Callable[[int, int], None]:
    """A progress bar on the running node; each step stops the run if the user asked for it.

    `total` goes until the first step says more.
    """
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return step
