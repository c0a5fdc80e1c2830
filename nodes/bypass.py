"""Bypass mode: LoRAs beside the layers of a MODEL, put on and taken off by the host with the model itself."""

from collections.abc import Callable, Mapping, Sequence

from comfy.patcher_extension import CallbacksMP
from torch import nn

from ..hyperlora_core.bypass import Attachment, BypassLoRA
from ..hyperlora_core.hyperlora import LoRA

# core's own bypass LoRAs share "bypass_lora", where a second one replaces the first
KEY = "hyperlora_bypass"


def put_beside(model, lora: LoRA, paths: Mapping[str, str]):
    """A clone of the MODEL with the LoRA beside its layers, in addition to those that stand there already.

    `paths`: LoRA key -> the layer's path in `model.model`.
    """
    before = model.get_injections(KEY) or []
    injection = BypassInjection([*(lora for one in before for lora in one.loras), BypassLoRA(lora, paths)])
    patched = model.clone()
    patched.set_injections(KEY, [injection])
    for event, callback in (
        (CallbacksMP.ON_INJECT_MODEL, injection.attach),
        (CallbacksMP.ON_CLEANUP, injection.release),
    ):
        patched.remove_callbacks_with_key(event, KEY)
        patched.add_callback_with_key(event, KEY, callback)
    return patched


class BypassInjection:
    """All our bypass LoRAs on a MODEL, as the host's PatcherInjection.

    The host injects and ejects everybody's in one and the same order, though what was put on last has to come off first.
    So the layers are wrapped after all others (`attach`) and unwrapped when it is our turn: an injection that is ejected
    before us puts back what it found, and with that takes ours off; one that comes after us finds its own on top again.
    """

    def __init__(self, loras: Sequence[BypassLoRA]):
        self.loras = loras
        # by patcher, since its clones carry this same object; by id, since a patcher ejects even while it is deleted
        self._attached: dict[int, Attachment] = {}

    def inject(self, patcher) -> None:
        """Nothing yet, see `attach`; that there is an injection makes the host call it."""

    def attach(self, patcher) -> None:
        self._attached[id(patcher)] = Attachment(patcher.model, self.loras, sampled_by(patcher.model, id(patcher)))

    def eject(self, patcher) -> None:
        if id(patcher) in self._attached:
            self._attached.pop(id(patcher)).remove()

    def release(self, patcher) -> None:
        """At the end of sampling, also of one that failed: the copies on the device lived for that run only."""
        if id(patcher) in self._attached:
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
