"""The training loop that everything here shares, on accelerate: one CPU process, one GPU, or several by
`accelerate launch`.

All randomness of a step comes from (seed, step, part, process), so a run that is killed and resumed from its checkpoint
goes through the same numbers as one that never stopped.
"""

import csv
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import packages
from ..errors import HyperLoRAError
from ..files import written_aside
from ..precision import cpu_is_fast_in
from .config import LoopConfig, check_same, flat
from .curves import draw_curves
from .trained import check_shapes, read_checkpoint

log = logging.getLogger(__name__)
PURPOSE = "Training"
AUTO = "auto"  # for LoopConfig.precision
CHECKPOINT, LOSSES, CURVES, SAMPLES = "checkpoint.pt", "losses.csv", "losses.png", "samples"
RESTART = 0.7  # the rate of a round, in that of the one before
ROWS_EVERY = 10  # steps whose mean is one row of losses.csv

Progress = Callable[[int, int, dict[str, float]], None]


class Draw(NamedTuple):
    """One batch's source of randomness; torch's global generator is seeded alike."""

    rng: np.random.Generator
    batch: int
    device: torch.device
    step: int = 0  # that the batch is for, from 0


class Task(Protocol):
    """What is trained. `module(**batch)` gives the loss' terms as scalars; their sum is minimised.

    Parameters that don't require a gradient are neither trained nor saved. A task may have `paces`: what the learning rate
    is multiplied by for parameters whose names begin so.
    """

    module: nn.Module

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """The next batch, on `draw.device`."""

    def sheet(self) -> Image.Image | None:
        """Samples to look at, from `module` as it is (the loop has put the moving average into it)."""


class Config(Protocol):
    loop: LoopConfig


def train(
    task: Task,
    config: Config,
    folder: str | Path,
    device: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
) -> int:
    """Train `task.module` up to `config.loop.steps` steps; return the step that was reached.

    `folder` gets checkpoint.pt, losses.csv, losses.png and samples/. Ctrl-C (or SIGTERM) ends the step in hand, writes
    the checkpoint and returns. `progress(step, steps, mean losses)` is told of the start too, then without losses; it
    may raise to stop, which loses the steps since the last checkpoint. Raises HyperLoRAError when `folder` holds a
    checkpoint and not `resume`, when that comes from another config, or when a loss is not finite.
    """
    return _Run(task, config, Path(folder), device, resume).train(progress)


def make_accelerator(loop: LoopConfig, device: str) -> Any:
    """accelerate's Accelerator for a config; `device`: auto, cpu, cuda, mps."""
    accelerate = packages.require("accelerate", PURPOSE)
    if device not in ("auto", "cpu") and not getattr(torch, device.partition(":")[0]).is_available():
        raise HyperLoRAError(f"Training was asked for on {device}, which PyTorch doesn't find here. Use --device auto.")
    _choose_card(device)
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    precision = loop.precision
    if precision == AUTO:
        precision = _fast_precision("cpu" if on_cpu else device)
    state = accelerate.state.AcceleratorState
    if state._shared_state and accelerate.PartialState().num_processes == 1:
        # accelerate keeps the first training's precision for the process, and offers no public way to let go of it
        state._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(
        cpu=device == "cpu", mixed_precision=precision, gradient_accumulation_steps=loop.accumulation
    )


def _fast_precision(device: str) -> str:
    """In accelerate's words."""
    if device == "cpu":
        return "bf16" if cpu_is_fast_in(torch.bfloat16) else "no"
    # cards before NVIDIA's Ampere only emulate bf16
    emulated = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "fp16" if emulated else "bf16"


def _choose_card(device: str) -> None:
    """The n-th one for "cuda:n", which accelerate doesn't take. Raises HyperLoRAError where it isn't there."""
    kind, _, number = device.partition(":")
    if not number:
        return
    if kind != "cuda" or not number.isdecimal() or int(number) >= torch.cuda.device_count():
        raise HyperLoRAError(
            f"Training was asked for on {device}, which isn't there: use --device cuda, or cuda:0, cuda:1, ..."
        )
    torch.cuda.set_device(int(number))


def rate_at(loop: LoopConfig, step: int) -> float:
    """The learning rate of step 0, 1, ...: linear warm-up, level, cosine cool-down over the last steps of its round."""
    ends = [0, *(restart for restart in loop.restarts or () if restart < loop.steps), loop.steps]
    number = sum(end <= step for end in ends[1:-1])
    begin, end = ends[number : number + 2]
    up = min(1.0, (step - begin + 1) / max(1, loop.warmup))
    left = min(1.0, (end - step) / max(1, loop.cooldown * (end - begin)))
    return loop.rate * RESTART**number * up * 0.5 * (1 - math.cos(math.pi * left))


class _Run:
    def __init__(self, task: Task, config: Config, folder: Path, device: str, resume: bool):
        packages.require("matplotlib", "Drawing the loss curves")
        restarts = config.loop.restarts or ()
        if list(restarts) != sorted({*restarts}) or (restarts and restarts[0] < 1):
            raise HyperLoRAError(f"restarts is {list(restarts)}, but must be steps above 0 that rise: order them.")
        self.task, self.config, self.loop, self.folder = task, config, config.loop, folder
        self.checkpoint = folder / CHECKPOINT
        self.accelerator = make_accelerator(self.loop, device)
        self.module = task.module.to(self.accelerator.device)
        if self.loop.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self.trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.statistics = statistics(self.module)
        self.paces, groups = zip(*self._groups(), strict=True)
        optimizer = torch.optim.AdamW(groups, lr=self.loop.rate, betas=(0.9, self.loop.beta2), fused=True)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        self.step = 0
        self.rows: list[dict[str, float]] = []
        if self.checkpoint.exists():
            if not resume:
                raise HyperLoRAError(
                    f"{folder} holds a training already: go on with it (--resume) or choose another folder (--out)."
                )
            self._load()
        else:
            self.ema = self._average(None)

    def train(self, progress: Progress | None) -> int:
        loop, main = self.loop, self.accelerator.is_main_process
        recent: list[dict[str, Tensor]] = []
        started = time.monotonic()
        self.module.train()
        if progress is not None and main:
            progress(self.step, loop.steps, {})
        with _stop_signals() as stopped:
            while self.step < loop.steps:
                recent.append(self._one_step())
                self.step += 1
                ending = self._ends(stopped())
                saving = ending or self.step == loop.steps or self.step % loop.save_every == 0
                if saving or self.step % ROWS_EVERY == 0:  # no state is saved whose losses weren't looked at
                    means = self._mean_losses(recent)
                    seconds = (time.monotonic() - started) / len(recent)
                    self.rows.append({"step": self.step, **means, "rate": rate_at(loop, self.step - 1), "s": seconds})
                    recent, started = [], time.monotonic()
                    if progress is not None and main:
                        progress(self.step, loop.steps, means)
                if main and saving:
                    self._save()
                if main and (self.step % loop.sample_every == 0 or self.step == loop.steps):
                    self._save_sheet()
                    started = time.monotonic()
                if ending:
                    break
        return self.step

    def _groups(self) -> list[tuple[float, dict[str, Any]]]:
        """The optimizer's groups, each with its pace; weight decay is for matrices alone."""
        paces = getattr(self.task, "paces", {})
        groups: dict[tuple[float, bool], list[Tensor]] = {}
        for name, parameter in self.trained.items():
            pace = next((pace for start, pace in paces.items() if name.startswith(start)), 1.0)
            groups.setdefault((pace, parameter.ndim > 1), []).append(parameter)
        decay = self.loop.weight_decay
        return [
            (pace, {"params": parameters, "weight_decay": decay if matrices else 0.0})
            for (pace, matrices), parameters in groups.items()
        ]

    def _ends(self, stopped: bool) -> bool:
        """Whether all processes end here because one was stopped; asked together, now and then, as it waits for all."""
        if self.accelerator.num_processes == 1:
            return stopped
        if stopped:
            self.accelerator.set_trigger()
        return self.step % ROWS_EVERY == 0 and self.accelerator.check_trigger()

    def _one_step(self) -> dict[str, Tensor]:
        rate = rate_at(self.loop, self.step)
        for group, pace in zip(self.optimizer.param_groups, self.paces, strict=True):
            group["lr"] = rate * pace
        sums: dict[str, Tensor] = {}
        for part in range(self.loop.accumulation):
            source = np.random.SeedSequence([self.loop.seed, self.step, part, self.accelerator.process_index])
            torch.manual_seed(int(source.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            draw = Draw(np.random.default_rng(source), self.loop.batch, self.accelerator.device, self.step)
            with self.accelerator.accumulate(self.wrapped), self._attention():
                losses = self.wrapped(**self.task.batch(draw))
                self.accelerator.backward(sum(losses.values()))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.trained.values(), self.loop.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / self.loop.accumulation
        if self.ema is not None:
            self.ema.step(self.trained.values())
        return sums

    def _attention(self) -> AbstractContextManager[None]:
        """On a CPU PyTorch's fused attention is slow backwards (see also `diffusion.quick_attention`)."""
        if self.accelerator.device.type != "cpu":
            return nullcontext()
        return sdpa_kernel(SDPBackend.MATH)

    def _mean_losses(self, recent: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(recent[0])
        stacked = torch.stack([torch.stack([losses[name].float() for name in names]) for losses in recent])
        means = dict(zip(names, self.accelerator.reduce(stacked.mean(0), "mean").tolist(), strict=True))
        wrong = [name for name, value in means.items() if not math.isfinite(value)]
        if wrong:
            raise HyperLoRAError(
                f"The loss '{wrong[0]}' is no number any more by step {self.step}; {self.checkpoint} holds the last good "
                "state. Resume it with a lower rate or another precision."
            )
        return means

    def _save(self) -> None:
        state = {
            "config": json.dumps(flat(self.config)),
            "step": self.step,
            "module": {name: p.detach() for name, p in self.trained.items()},
            "statistics": self.statistics,
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
        }
        with written_aside(self.checkpoint) as aside:
            try:
                torch.save(state, aside)
            except RuntimeError as error:  # how torch reports a full disk
                raise OSError(str(error)) from error
        with written_aside(self.folder / LOSSES) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]))
            writer.writeheader()
            writer.writerows(self.rows)
        draw_curves(self.rows, self.folder / CURVES)

    def _load(self) -> None:
        state = read_checkpoint(self.checkpoint)
        check_same(json.loads(state["config"]), self.config, self.checkpoint)
        check_shapes(state["module"], self.trained, self.checkpoint)
        with torch.no_grad():
            for name, value in state["module"].items():
                self.trained[name].copy_(value)
            for name, value in state.get("statistics", {}).items():
                self.statistics[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema = self._average(state["ema"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if (self.folder / LOSSES).exists():
            with (self.folder / LOSSES).open(newline="", encoding="utf-8") as file:
                rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["step"] <= self.step]

    def _average(self, state: dict[str, Any] | None) -> Any:
        """The weights' moving average, from a checkpoint's state or beginning with the weights as they are."""
        if not self.loop.ema_decay:
            return None
        kind = packages.require("diffusers.training_utils", PURPOSE).EMAModel
        ema = kind(self.trained.values(), use_ema_warmup=True, power=0.75, foreach=True)
        if state is not None:
            ema.load_state_dict(state)
            ema.to(self.accelerator.device)
        ema.decay = self.loop.ema_decay
        return ema

    def _save_sheet(self) -> None:
        if self.ema is not None:
            self.ema.store(self.trained.values())
            self.ema.copy_to(self.trained.values())
        self.module.eval()
        try:
            with torch.no_grad():
                sheet = self.task.sheet()
        except torch.cuda.OutOfMemoryError:
            log.warning("No sheet at step %s: the GPU's memory ran out. The training goes on.", self.step)
            sheet = None
        finally:
            self.module.train()
            if self.ema is not None:
                self.ema.restore(self.trained.values())
        if sheet is not None:
            with written_aside(self.folder / SAMPLES / f"{self.step:06}.png") as aside:
                sheet.save(aside, format="PNG")


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """What the trained layers count without a gradient, by name: a batch norm's means and variances."""
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    return {
        f"{name}.{key}": value
        for name, layer in layers
        if any(p.requires_grad for p in layer.parameters())
        for key, value in layer.named_buffers()
    }


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask to stop; a second one stops at once. Yields whether one came."""
    came = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread: whoever runs this thread stops it by `progress`
        before.clear()
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
