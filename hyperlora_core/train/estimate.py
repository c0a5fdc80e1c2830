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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .. import packages
from ..basis import Basis
from ..checkpoint import MODULES
from ..demo.hyperlora import FACE_WIDTH, HyperLoRASize, Modules, specs, unet_modules
from ..demo.sdxl import SDXL_BASE, SDXLSize, random_models
from ..errors import HyperLoRAError
from ..hyperlora import HyperLoRA
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
    """A stage on photos of one size, in one process."""

    side: int  # px
    config: Config
    trained: int  # parameters
    frozen: int
    lasting: dict[str, int]  # bytes that are held from step to step, by what they are
    passing: int  # bytes that a step adds at its worst moment
    flops: dict[str, float]  # of one accumulated part, by precision: bf16, tf32, fp32

    def memory(self, processes: int = 1) -> int:
        """Bytes in all; with several processes each holds the gradients once more, on their way to the others."""
        return sum(self.lasting.values()) + self.passing + (self.lasting["gradients"] if processes > 1 else 0)

    def seconds(self, gpu: GPU) -> float:
        """Of a step with all its accumulated parts."""
        peaks = {"bf16": gpu.bf16, "tf32": gpu.tf32, "fp32": gpu.fp32}
        part = sum(n / (peaks[precision] * 1e12 * SHARE) for precision, n in self.flops.items())
        return part * self.config.loop.accumulation

    def days(self, gpu: GPU) -> float:
        """Of all steps. More GPUs make steps larger, not faster."""
        return self.config.loop.steps * self.seconds(gpu) / 86400


def estimate(
    config: Config,
    sides: Sequence[int] = SIDES,
    sdxl: SDXLSize = SDXL_BASE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Estimate]:
    """Estimate the stage of `config` for photos of each side. `progress(done, in all)` may raise to stop.

    Raises HyperLoRAError for a config with PuLID's losses, whose sampling depends on faces that are found.
    """
    if config.pulid is not None:
        raise HyperLoRAError("The estimate doesn't know PuLID's losses: leave [pulid] out of the config.")
    with FakeTensorMode(allow_non_fake_inputs=True):
        models = SimpleNamespace(**random_models(sdxl))
        network = planned_network(unet_modules(models.unet.config), config.hyperlora)
        vision = VisionEncoder(_clip_tower(config.hyperlora.clip_width))
    encoders = [models.vae, models.text_encoder, models.text_encoder_2, vision.tower]
    for encoder in encoders:
        encoder.to = lambda _device, encoder=encoder: encoder  # tensors without values can't be moved, nor need they
    # scenario (a) for all; what the others add is a share of a forward pass, see _step
    stage = replace(config.stage, cache=False, scenarios=(1.0, 0.0, 0.0))
    task = StageTask(replace(config, stage=stage), BlankPhotos(), models, vision, network, Path())
    norms_as_on_gpu(task.module)
    results = []
    for side in sides:
        if progress is not None:
            progress(len(results), len(sides))
        task.photos.size = side
        results.append(_estimate(task, config, encoders))
    if progress is not None:
        progress(len(sides), len(sides))
    return results


def report(estimates: Sequence[Estimate]) -> str:
    """A stage's estimates as Markdown: what lasts, and a row for each size of photos. GB are 10^9 bytes."""
    first = estimates[0]
    loop, counted = first.config.loop, f"{first.trained:,} parameters are trained, {first.frozen:,} frozen"
    held = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in first.lasting.items())
    head = ["px", "a step adds, GB", "in all, GB", "on several GPUs", "TFLOP a photo"]
    head += [f"s a step, {gpu.name}" for gpu in GPUS] + [f"days, {A100.name}"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for one in estimates:
        photo = sum(one.flops.values()) / loop.batch / 1e12
        row = [f"{one.side}", *(f"{size / 1e9:.1f}" for size in (one.passing, one.memory(), one.memory(2)))]
        row += [f"{photo:.1f}", *(f"{one.seconds(gpu):.1f}" if fits(one, gpu) else "-" for gpu in GPUS)]
        lines.append(f"| {' | '.join([*row, f'{one.days(A100):.1f}'])} |")
    return "\n".join(
        [
            f"Estimated, not measured: SDXL, batch {loop.batch} x {loop.accumulation}, precision {loop.precision}, "
            f"checkpointing {'on' if first.config.stage.checkpointing else 'off'}; GPUs at {SHARE:.0%} of their peak.",
            f"{counted}. Held all the time, GB: {held}.",
            "",
            *lines,
            "",
            f"-: doesn't fit. Days: {loop.steps:,} steps.",
        ]
    )


def fits(one: Estimate, gpu: GPU) -> bool:
    """Whether a single GPU holds the training."""
    return one.memory() <= gpu.memory * 1e9


def _estimate(task: StageTask, config: Config, encoders: list[nn.Module]) -> Estimate:
    trained = [p for p in task.module.parameters() if p.requires_grad]
    frozen = [p for p in task.module.parameters() if not p.requires_grad]
    frozen += [p for encoder in encoders for p in encoder.parameters()]
    weights = _bytes(trained)
    lasting = {"frozen models": _bytes(frozen), "trained weights": weights, "gradients": weights, "AdamW": 2 * weights}
    if config.loop.ema_decay:
        lasting["moving average"] = weights
    others = sum(config.stage.scenarios[1:]) if config.stage.conditions else 0.0
    with FakeTensorMode(allow_non_fake_inputs=True):
        for p in trained:
            p.grad = torch.zeros_like(p)  # of the parts accumulated before
        passing, flops = _step(task, config.loop, others)
        passing = max(passing, _update(trained, config.loop))
    return Estimate(task.photos.size, config, _count(trained), _count(frozen), lasting, passing, flops)


def _step(task: StageTask, loop: LoopConfig, others: float) -> tuple[int, dict[str, float]]:
    """Peak bytes and FLOPs of one part: encoders, forward, backward.

    `others`: the share of pictures for which the frozen model gives the target, in one more forward pass each.
    """
    draw = Draw(np.random.default_rng(0), loop.batch, torch.device("cpu"))
    task.module.train()
    with Meter() as meter:
        batch = task.batch(draw)
        before = Counter(meter.flops)
        with NobodyHeld(), torch.autocast("cpu", torch.bfloat16, enabled=loop.precision != "no"):
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
            self._add(storage, counted=False)
        out = func(*args, **kwargs)
        for storage in _storages(out):
            self._add(storage)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops[_precision(func, args)] += formula(*args, **kwargs, out_val=out)
        return out

    def _add(self, storage: torch.UntypedStorage, counted: bool = True) -> None:
        address, size = storage._cdata, storage.nbytes() if counted else 0
        if address not in self._known:
            self._known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, address, size)  # another may come to lie at the address

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


def _precision(func: Any, args: tuple) -> str:
    if next(value for value in tree_leaves(args) if isinstance(value, Tensor)).dtype in (torch.bfloat16, torch.float16):
        return "bf16"
    return "tf32" if func._overloadpacket in (aten.convolution, aten.convolution_backward) else "fp32"


class NobodyHeld(TorchFunctionMode):
    """The one shape that depends on values: how many photos draw other scenarios than (a). Here none does."""

    def __torch_function__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is Tensor.nonzero:
            return torch.empty(0, args[0].ndim, dtype=torch.long)
        return func(*args, **(kwargs or {}))


def norms_as_on_gpu(module: nn.Module) -> None:
    """Make autocast compute norms in fp32, as it does on a GPU but not on the CPU."""

    def in_full(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].float(), *inputs[1:]) if torch.is_autocast_enabled("cpu") else inputs

    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            part.register_forward_pre_hook(in_full)


class BlankPhotos:
    """photos.Photos, all black; `size` may be changed."""

    people, recognition = np.zeros(1, np.int64), "none"
    size = SIDES[0]

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
