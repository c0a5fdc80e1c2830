"""LoRAs in core's hooks: in the weights for a part of sampling, or of the picture, only."""

from collections.abc import Iterable

import comfy.hooks
from comfy.patcher_extension import WrappersMP
from comfy.quant_ops import QuantizedTensor

from ..hyperlora_core import HyperLoRAError
from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.schedule import Schedule

KEY = "hyperlora_schedule"


def hooks_for(lora: LoRA, strength: float, schedule: Schedule) -> comfy.hooks.HookGroup:
    """The LoRA as core's hooks, with a keyframe wherever the schedule turns it on or off."""
    hooks = comfy.hooks.create_hook_lora(lora, strength, 0)
    if not schedule.always:
        keyframes = comfy.hooks.HookKeyframeGroup()
        for percent, turned in schedule.turns:
            # no guaranteed step: a sampler that begins late would spend it on a time that is over
            keyframes.add(comfy.hooks.HookKeyframe(turned, start_percent=percent, guarantee_steps=0))
        hooks.set_keyframes_on_hooks(keyframes)
    return hooks


def put_in_time(model, lora: LoRA, strength: float, schedule: Schedule):
    """A clone of the MODEL that has the LoRA in its weights while the schedule says so."""
    hooks = hooks_for(lora, strength, schedule)
    patched = hookable(model)
    for hook in hooks.hooks:
        hook.add_hook_patches(
            patched, {}, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model), comfy.hooks.HookGroup()
        )
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, HooksOnEverything(hooks))
    return patched


def require_plain_weights(model, paths: Iterable[str], remedy: str) -> None:
    """Raise HyperLoRAError for a layer that is stored in fewer bits: core's hooks fail there, or leave it as it is."""
    for path in paths:
        weight = model.model.get_submodule(path).weight
        if isinstance(weight, QuantizedTensor) or not weight.is_floating_point():
            raise HyperLoRAError(
                f"{path} is quantised, and what changes weights while sampling can't change that: use {remedy}."
            )


def hookable(model):
    """A clone whose weights hooks can change: with dynamic VRAM the host makes a second copy of the model for that.

    The sampler itself does so only where it sees hooks, and it doesn't see those of a MODEL.
    """
    if not model.is_dynamic():
        return model.clone()
    if model.cached_patcher_init is None:
        raise HyperLoRAError(
            "This model's loader gives ComfyUI no way to load it once more, which start and end need in merge mode "
            "with dynamic VRAM: use mode bypass."
        )
    return model.get_non_dynamic_delegate()


class HooksOnEverything:
    """Around a sampling run: hangs the hooks on all its conditionings, where core looks for them."""

    def __init__(self, hooks: comfy.hooks.HookGroup):
        self.hooks = hooks

    def __call__(self, executor, *args, **kwargs):
        hooks = self.hooks.clone()
        # keyframes of their own, since used ones remember the step at which the last run ended
        hooks.set_keyframes_on_hooks(hooks.hooks[0].hook_keyframe)
        # what had the same hooks has the same hooks afterwards, and so is still computed in one batch
        joined = {None: hooks}
        for conds in executor.class_obj.conds.values():
            for cond in conds:
                before = cond.get("hooks")
                if before not in joined:
                    joined[before] = before.clone_and_combine(hooks)
                cond["hooks"] = joined[before]
        return executor(*args, **kwargs)
