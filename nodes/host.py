"""Our models in the host's hands: it decides where they lie, and frees them when a sampler needs the room."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ..hyperlora_core import HyperLoRA, VisionEncoder, load_hyperlora

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class LoadedHyperLoRA:
    """What a HYPERLORA wire carries."""

    hyper: HyperLoRA
    vision: VisionEncoder | None
    patcher: comfy.model_patcher.ModelPatcher  # of the basis; the host's cache accounting looks for this name


def load(path: Path, clip_path: Callable[[int], Path], precision: str) -> LoadedHyperLoRA:
    """Checkpoint and the CLIP tower that it reads; `clip_path` finds the tower by its width."""
    device = comfy.model_management.get_torch_device()
    dtype = PRECISIONS.get(precision) or automatic_precision(device)
    hyper = load_hyperlora(path, dtype=dtype, operations=comfy.ops.manual_cast)
    basis = hand_over(hyper, [hyper.basis, hyper.encoder])[0]
    vision = None
    if hyper.clip_width is not None:
        vision = VisionEncoder.load(clip_path(hyper.clip_width), dtype=dtype)
        hand_over(vision, [vision.tower])
    return LoadedHyperLoRA(hyper, vision, basis)


def automatic_precision(device: torch.device) -> torch.dtype:
    """Half precision where the device multiplies it fast; a CPU doesn't."""
    if comfy.model_management.is_device_cpu(device):
        return torch.float32
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32


def hand_over(
    owner: HyperLoRA | VisionEncoder, modules: list[torch.nn.Module]
) -> list[comfy.model_patcher.ModelPatcher]:
    """Let the host move the owner's modules: from now on it brings one onto the device before each use."""
    patchers = {
        module: comfy.model_patcher.CoreModelPatcher(
            module,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        for module in modules
    }

    def bring(module: torch.nn.Module) -> torch.device:
        comfy.model_management.load_models_gpu([patchers[module]])
        return patchers[module].load_device

    owner.bring = bring
    return list(patchers.values())


def progress(total: int) -> Callable[[int, int], None]:
    """A progress bar on the running node; each step stops the run if the user asked for it."""
    bar = comfy.utils.ProgressBar(total)

    def step(done: int, _total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return step
