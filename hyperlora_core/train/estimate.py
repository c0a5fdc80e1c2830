"""What a stage of HyperLoRA's training needs with SDXL, before anything is downloaded: memory, FLOPs, days.

Nothing here is measured. The stage's own code takes one step on modules of the true sizes whose tensors have shapes and
no values (torch's FakeTensorMode). Every operation is seen: its FLOPs by torch.utils.flop_counter's formulas, and every
tensor's bytes from when it is made until it is let go. Attention counts as flash attention, norms in fp32 under mixed
precision, the optimiser as fused over lists of tensors: as on a GPU.

What is left out: fragments of the allocator and work space of kernels (memory); reading photos, memory traffic, the
network between GPUs, samples (time). SHARE stands for these.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .. import packages
from ..checkpoint import MODULES
from ..demo.hyperlora import FACE_WIDTH, HyperLoRASize, Modules, specs, unet_modules
from ..demo.sdxl import SDXL_BASE, SDXLSize, random_models
from ..hyperlora import Basis, HyperLoRA
from ..resampler import IDProjector, Resampler, ResamplerConfig
from ..vision import VisionEncoder
from .config import LoopConfig
from .loop import Draw
from .network import Network
from .stage import Config, StageTask

SIDES = (512, 768, 1024)  # px
SHARE = 0.4  # of a GPU's peak that training reaches: an assumption
PAPER_GPUS, PAPER_DAYS = 16, 10  # A100; "about 10 days" for all stages (paper, section 4.1)
CLIP_SIDE, CLIP_PATCH, CLIP_LAYERS = 224, 14, 23  # ViT-L without its last layer, see vision.py

aten = torch.ops.aten
FLASH, FLASH_BACKWARD = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward
FORMULAS = {  # fake tensors are on the CPU, whose flash attention the table lacks
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[FLASH],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[FLASH_BACKWARD],
}


@dataclass(frozen=True)
class GPU:
    """A GPU by its maker's data sheet: GB, and dense TFLOPS. PyTorch computes fp32 convolutions in TF32, products not."""

    name: str
    memory: float
    bf16: float
    tf32: float
    fp32: float


A100 = GPU("A100", 80, 312, 156, 19.5)
GPUS = (A100, GPU("H100 SXM", 80, 989, 495, 67), GPU("H200 SXM", 141, 989, 495, 67), GPU("RTX 4090", 24, 165, 83, 83))


@dataclass(frozen=True)
class Estimate:
    """A stage at one size of pictures; bytes and FLOPs are of one process."""

    side: int  # px
    checkpointing: bool
    loop: LoopConfig
    trained: int  # parameters
    frozen: int
    lasting: dict[str, int]  # bytes that are held from step to step, by what they are
    passing: int  # bytes that a step adds at its worst moment
    flops: dict[str, float]  # of one accumulated part, by precision: bf16, tf32, fp32

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return sum(self.lasting.values()) + self.passing

    def seconds(self, gpu: GPU) -> float:
        """Of a step with all its accumulated parts."""
        peaks = {"bf16": gpu.bf16, "tf32": gpu.tf32, "fp32": gpu.fp32}
        return self.loop.accumulation * sum(n / (peaks[kind] * 1e12 * SHARE) for kind, n in self.flops.items())

    def days(self, gpu: GPU) -> float:
        """Of all steps. More GPUs make steps larger, not faster."""
        return self.loop.steps * self.seconds(gpu) / 86400


def estimate(
    config: Config,
    sides: Iterable[int] = SIDES,
    checkpointing: Iterable[bool] = (True, False),
    sdxl: SDXLSize = SDXL_BASE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Estimate]:
    """Estimate the stage of `config` for pictures of each side, with and without gradient checkpointing.

    The config's own `stage.checkpointing` doesn't count. `progress(done, in all)` may raise to stop.
    """
    cases = [(side, recompute) for recompute in checkpointing for side in sides]
    results = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        models = SimpleNamespace(**random_models(sdxl))
        network = planned_network(unet_modules(models.unet.config), config.hyperlora)
        vision = VisionEncoder(_clip_tower(config.hyperlora.clip_width))
    encoders = [models.vae, models.text_encoder, models.text_encoder_2, vision.tower]
    for encoder in encoders:
        encoder.to = lambda _device, encoder=encoder: encoder  # tensors without values can't be moved, nor need they
    for side, recompute in cases:
        if progress is not None:
            progress(len(results), len(cases))
        # scenario (a) for all; what the others add is a share of a forward pass, see _step
        stage = replace(config.stage, checkpointing=recompute, cache=False, scenarios=(1.0, 0.0, 0.0))
        task = StageTask(replace(config, stage=stage), BlankPhotos(side), models, vision, network, None)
        results.append(_estimate(task, config, side, encoders))
        task.module.injection.remove()
        models.unet.disable_gradient_checkpointing()
    if progress is not None:
        progress(len(results), len(cases))
    return results


def _estimate(task: StageTask, config: Config, side: int, encoders: list[nn.Module]) -> Estimate:
    trained = [p for p in task.module.parameters() if p.requires_grad]
    frozen = [p for module in (task.module, *encoders) for p in module.parameters() if not p.requires_grad]
    weights = _bytes(trained)
    lasting = {"frozen models": _bytes(frozen), "trained weights": weights, "gradients": weights, "AdamW": 2 * weights}
    if config.loop.ema_decay:
        lasting["moving average"] = weights
    lasting["gradients on their way to other GPUs"] = weights  # DistributedDataParallel's buckets
    others = sum(config.stage.scenarios[1:]) if config.stage.conditions else 0.0
    with FakeTensorMode(allow_non_fake_inputs=True):
        for p in trained:
            p.grad = torch.zeros_like(p)  # of the parts accumulated before
        passing, flops = _step(task, config.loop, others)
        passing = max(passing, _update(trained, config.loop))
    return Estimate(
        side, task.config.checkpointing, config.loop, _count(trained), _count(frozen), lasting, passing, flops
    )


def _step(task: StageTask, loop: LoopConfig, others: float) -> tuple[int, dict[str, float]]:
    """Peak bytes and FLOPs of one part: encoders, forward, backward.

    `others`: the share of pictures for which the frozen model gives the target, in one more forward pass each.
    """
    draw = Draw(np.random.default_rng(0), loop.batch, torch.device("cpu"))
    task.module.train()
    with Meter() as meter, AsOnGPU():
        batch = task.batch(draw)
        before = Counter(meter.flops)
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.precision != "no"):
            losses = task.module(**batch)
        forward = meter.flops - before
        sum(losses.values()).backward()
    return meter.peak, {kind: n + others * forward[kind] for kind, n in meter.flops.items()}


def _update(trained: list[Tensor], loop: LoopConfig) -> int:
    """Peak bytes of the optimiser's step and the moving average's."""
    optimizer = torch.optim.AdamW(trained, foreach=True)
    optimizer.step()  # makes its moments, which last
    average = None
    if loop.ema_decay:
        average = packages.require("diffusers.training_utils", "Estimating").EMAModel(trained, foreach=True)
    with Meter() as meter:
        optimizer.step()
        if average is not None:
            average.step(trained)
    return meter.peak


class Meter(TorchDispatchMode):
    """Counts FLOPs, and the bytes of tensors that are made while it is on, until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.live = self.peak = 0
        self._known: set[int] = set()  # storages, by address

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):  # what was there before isn't counted
            self._known.add(storage._cdata)
        out = func(*args, **kwargs)
        for storage in _storages(out):
            self._add(storage)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops[_precision(func, args)] += formula(*args, **kwargs, out_val=out)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


def _precision(func: Any, args: tuple) -> str:
    if next(value for value in tree_leaves(args) if isinstance(value, Tensor)).dtype in (torch.bfloat16, torch.float16):
        return "bf16"
    return "tf32" if func._overloadpacket in (aten.convolution, aten.convolution_backward) else "fp32"


class AsOnGPU(TorchFunctionMode):
    """What tensors without values on the CPU do otherwise than true ones on a GPU."""

    def __torch_function__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.nonzero:  # a shape that depends on values: on those of the scenarios, which are all (a)
            return torch.empty(0, args[0].ndim, dtype=torch.long)
        # autocast computes norms in fp32 on a GPU only
        if func in (functional.layer_norm, functional.group_norm) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


class BlankPhotos:
    """photos.Photos of a side, all black."""

    people, recognition = np.zeros(1, np.int64), "none"

    def __init__(self, side: int):
        self.size = side

    def __len__(self) -> int:
        return 1

    def captions(self, rows: np.ndarray) -> list[str]:
        return [""] * len(rows)

    def pictures(self, rows: np.ndarray, _rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(rows), self.size, self.size, 3), np.uint8), np.zeros((len(rows), 4), np.float32)

    def identity_pictures(self, rows: np.ndarray) -> list[np.ndarray]:
        return [np.zeros((CLIP_SIDE, CLIP_SIDE, 3), np.uint8)] * len(rows)

    base_pictures = identity_pictures

    def embeddings(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), FACE_WIDTH), np.float32)


class PlannedNetwork(Network):
    """A Network whose tensors have no values yet, so that its hyper has no fingerprint."""

    def __init__(self, hyper: HyperLoRA, conditions: tuple[str, ...]):
        nn.Module.__init__(self)
        self.hyper, self.encoder, self.basis, self.conditions = hyper, hyper.encoder, hyper.basis, conditions


def planned_network(modules: Modules, size: HyperLoRASize) -> PlannedNetwork:
    """The network of this size; to be called where tensors have no values."""
    parts: dict[str, dict[str, Tensor]] = {}
    for spec in specs(modules, size):
        parts.setdefault(spec.part, {})[spec.name] = torch.empty(spec.shape)
    shapes = {part: {name: tuple(tensor.shape) for name, tensor in tensors.items()} for part, tensors in parts.items()}
    resamplers = {
        part: Resampler(ResamplerConfig.from_tensors(shapes[part]))
        for part in ("resampler", "base_resampler")
        if part in parts
    }
    projector = IDProjector.from_tensors(shapes["id_projector"]) if "id_projector" in parts else None
    hyper = HyperLoRA(
        resamplers["resampler"], Basis(parts[MODULES], list(modules)), projector, resamplers.get("base_resampler")
    )
    return PlannedNetwork(hyper, size.conditions)


def _clip_tower(width: int) -> nn.Module:
    """CLIP's ViT-L as VisionEncoder reads it, or one as deep of another width."""
    purpose = "Estimating what CLIP needs"
    tower = packages.require("open_clip.transformer", purpose).VisionTransformer(
        image_size=CLIP_SIDE,
        patch_size=CLIP_PATCH,
        width=width,
        layers=CLIP_LAYERS,
        heads=width // 64,
        mlp_ratio=4.0,
        act_layer=packages.require("open_clip.model", purpose).QuickGELU,
    )
    tower.ln_post, tower.proj = nn.Identity(), None
    return tower.eval().requires_grad_(False)


def _count(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
