"""Bypass mode: LoRAs beside the layers of a MODEL, put on and taken off by the host with the model itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor, nn

from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.bypass import Attachment, BypassLoRA
from ..hyperlora_core.schedule import Schedule

# core's own bypass LoRAs share "bypass_lora", where a second one replaces the first
KEY = "hyperlora_bypass"
NEGATIVE = "negative"  # in the names that guiders give such conditionings: negative, empty_negative_prompt


class TimedLoRA(NamedTuple):
    """A LoRA beside the layers, when, and whether for the negative prompt too."""

    lora: BypassLoRA
    schedule: Schedule
    guide: bool


def put_beside(model, lora: LoRA, paths: Mapping[str, str], schedule: Schedule, guide: bool = False):
    """A clone of the MODEL with the LoRA beside its layers, in addition to those that stand there already.

    `paths`: LoRA key -> the layer's path in `model.model`. `guide`: the negative prompt is computed without it.
    """
    before = model.get_injections(KEY) or []
    loras = [*(timed for one in before for timed in one.loras), TimedLoRA(BypassLoRA(lora, paths), schedule, guide)]
    injection = BypassInjection(loras)
    patched = model.clone()
    patched.set_injections(KEY, [injection])
    callbacks = {CallbacksMP.ON_INJECT_MODEL: injection.attach, CallbacksMP.ON_CLEANUP: injection.release}
    if not all(timed.schedule.always for timed in loras):
        callbacks[CallbacksMP.ON_PREPARE_STATE] = injection.step
    for event, callback in callbacks.items():
        patched.remove_callbacks_with_key(event, KEY)
        patched.add_callback_with_key(event, KEY, callback)
    if any(timed.guide for timed in loras):
        for place, wrapper in {
            WrappersMP.SAMPLER_SAMPLE: injection.note_negatives,
            WrappersMP.APPLY_MODEL: injection.leave_negatives,
        }.items():
            patched.remove_wrappers_with_key(place, KEY)
            patched.add_wrapper_with_key(place, KEY, wrapper)
    return patched


class BypassInjection:
    """All our bypass LoRAs on a MODEL, as the host's PatcherInjection.

    The host injects and ejects everybody's in one and the same order, though what was put on last has to come off first.
    So the layers are wrapped after all others (`attach`) and unwrapped when it is our turn: an injection that is ejected
    before us puts back what it found, and with that takes ours off; one that comes after us finds its own on top again.
    """

    def __init__(self, loras: Sequence[TimedLoRA]):
        self.loras = loras
        # by patcher, since its clones carry this same object; by id, since a patcher ejects even while it is deleted
        self._attached: dict[int, Attachment] = {}
        self._resting: dict[int, list[int]] = {}  # whose time it isn't; hooks eject and inject within a step
        self._guides = [number for number, timed in enumerate(loras) if timed.guide]
        self._negatives: set[UUID] = set()

    def inject(self, patcher) -> None:
        """Nothing yet, see `attach`; that there is an injection makes the host call it."""

    def attach(self, patcher) -> None:
        loras = [timed.lora for timed in self.loras]
        attachment = Attachment(patcher.model, loras, sampled_by(patcher.model, id(patcher)))
        attachment.rest(self._resting.get(id(patcher), ()))
        self._attached[id(patcher)] = attachment

    def eject(self, patcher) -> None:
        if id(patcher) in self._attached:
            self._attached.pop(id(patcher)).remove()

    def step(self, patcher, timestep: Tensor, _model_options: dict) -> None:
        """Before each step: `timestep` [n] is its noise level."""
        sigma, sigma_at = timestep[0].item(), patcher.model.model_sampling.percent_to_sigma
        resting = [n for n, timed in enumerate(self.loras) if not timed.schedule.covers(sigma, sigma_at)]
        self._resting[id(patcher)] = resting
        if id(patcher) in self._attached:
            self._attached[id(patcher)].rest(resting)

    def note_negatives(self, executor, guider, *args, **kwargs):
        """Around a run: which conditionings are negative. A guider knows them by name, a step by their ids only.

        Where one has an area that the other side lacks, core gives it a copy of the other's, and with it the other's id.
        """
        positives = {cond["uuid"] for name, given in guider.conds.items() if NEGATIVE not in name for cond in given}
        negatives = set()
        for cond in (cond for name, given in guider.conds.items() if NEGATIVE in name for cond in given):
            if cond["uuid"] in positives:
                cond["uuid"] = uuid4()
            negatives.add(cond["uuid"])
        self._negatives |= negatives
        try:
            return executor(guider, *args, **kwargs)
        finally:
            self._negatives -= negatives

    def leave_negatives(self, executor, *args, **kwargs):
        """Around a call of the model, whose batch is several conditionings of equal size: some may be negative."""
        options = next(
            (given for given in (*args, *kwargs.values()) if isinstance(given, dict) and "uuids" in given), {}
        )
        attachment = self._attached.get(id(executor.class_obj.current_patcher))
        if attachment is not None:
            parts = [uuid not in self._negatives for uuid in options.get("uuids", ())]
            attachment.share(self._guides, parts or [True])
        return executor(*args, **kwargs)

    def release(self, patcher) -> None:
        """At the end of sampling, also of one that failed: the copies on the device lived for that run only."""
        self._resting.pop(id(patcher), None)
        if id(patcher) in self._attached:
            self._attached[id(patcher)].rest(())
            self._attached[id(patcher)].release()


def sampled_by(model: nn.Module, patcher: int) -> Callable[[], bool]:
    """Whether no other patcher is sampling with the model than the one with this id.

    The host injects a patcher again whose loading failed, for want of memory, and then doesn't know it as loaded: nothing
    would eject it when the next patcher of the same model samples.
    """

    def wanted() -> bool:
        sampling = getattr(model, "current_patcher", None)  # only there while the host's own sampling runs
        return sampling is None or id(sampling) == patcher

    return wanted
