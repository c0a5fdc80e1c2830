"""Several people in one picture, each with a LoRA in a place of their own."""

import comfy.hooks
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ..hyperlora_core import HyperLoRAError
from ..hyperlora_core.basis import LoRA
from ..hyperlora_core.block_weights import ALIKE, weigh_blocks
from ..hyperlora_core.lora import check_fits, pairs
from ..hyperlora_core.regions import region_mask
from ..hyperlora_core.schedule import Schedule
from .apply import block_inputs, model_layers, one_lora, time_inputs, weight_inputs
from .hooks import hooks_for, require_plain_weights
from .types import CATEGORY

Conditioning = list  # of [tokens, settings]

WHOLE, BOUNDS = "default", "mask bounds"  # what a person is painted with in view; core's names, of ConditioningSetMask
CONTROL = ("control", "control_apply_to_uncond")  # what core's ControlNet nodes put into a prompt's settings
MARK = "hyperlora_region"  # in the settings of what a Region added


class HyperLoRARegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        weight, base_weight = weight_inputs()
        return io.Schema(
            node_id="HyperLoRARegion",
            display_name="HyperLoRA Region",
            category=CATEGORY,
            description="Puts a person into a part of the picture. One after another, for any number of people; the sampler's "
            "model stays without them.",
            search_aliases=["regional prompt", "several people", "two people", "couple", "mask", "attention couple"],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The prompt of the whole picture, or what the Region before this one gives."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="The negative prompt, or what the Region before this one gives."
                ),
                io.LoraModel.Input("id_lora", tooltip="The person, from Generate LoRA."),
                weight,
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The person's place, white, of any size. Without one the person is everywhere.",
                ),
                io.Conditioning.Input(
                    "person_prompt",
                    optional=True,
                    tooltip="What is in this place, with the trigger words in front. Without it: the prompt of the whole picture.",
                ),
                io.LoraModel.Input(
                    "base_lora", optional=True, tooltip="From Generate LoRA, where the checkpoint has a base branch."
                ),
                base_weight,
                *time_inputs(),
                *block_inputs(),
                io.Boolean.Input(
                    "guide",
                    default=False,
                    optional=True,
                    tooltip="Leave the person out of the negative prompt, so that CFG leads to the person, too: more likeness "
                    "at the same weight.",
                ),
                io.Combo.Input(
                    "set_cond_area",
                    options=[WHOLE, BOUNDS],
                    default=WHOLE,
                    optional=True,
                    tooltip="default: the person is painted with the whole picture in view. mask bounds: with the mask's box "
                    "alone in view, as a picture of its own: more likeness, less of one picture, faster.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="For the sampler, or the next Region."),
                io.Conditioning.Output("negative", tooltip="For the sampler, or the next Region."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: Conditioning,
        negative: Conditioning,
        id_lora: LoRA,
        weight: float,
        mask=None,
        person_prompt: Conditioning | None = None,
        base_lora: LoRA | None = None,
        base_weight: float = 0.4,
        start: float = 0.0,
        end: float = 1.0,
        blocks: str = ALIKE,
        block_weights: str = "",
        guide: bool = False,
        set_cond_area: str = WHOLE,
    ) -> io.NodeOutput:
        if mask is None and set_cond_area != WHOLE:
            raise HyperLoRAError(
                f"set_cond_area is {set_cond_area}, but this person has no mask: give one, or choose {WHOLE}."
            )
        schedule = Schedule(start, end)
        lora, strength = one_lora(id_lora, weight, base_lora, base_weight)
        hooks = hooks_for(weigh_blocks(lora, block_weights, blocks), strength, schedule)
        for hook in hooks.hooks:
            hook.custom_should_register = MustFit(lora)
        hooks.add(BEFORE_SAMPLING)
        if mask is not None:
            mask = region_mask(
                mask, [entry[1]["mask"] for entry in positive if MARK in entry[1] and "mask" in entry[1]]
            )
        return io.NodeOutput(*add_person(positive, negative, person_prompt, mask, hooks, guide, set_cond_area))


class MustFit:
    """Core's question whether to use a hook, asked when the model is known: the answer is yes, or what is wrong."""

    def __init__(self, lora: LoRA):
        self.lora = lora

    def __call__(self, _hook, model, _model_options, _target, _registered) -> bool:
        layers = model_layers(model)
        check_fits(self.lora, {key: layer.shape for key, layer in layers.items()})
        require_plain_weights(model, [layers[pair.key].path for pair in pairs(self.lora)], "an unquantised model")
        return True


def before_sampling(executor, noise: Tensor, *args, **kwargs):
    """Around a sampling run, where the number of pictures is known and the schedules begin."""
    places = [cond for conds in executor.class_obj.conds.values() for cond in conds if MARK in cond]
    for cond in places:
        masks = len(cond["mask"]) if "mask" in cond else 1
        if masks not in (1, len(noise)):  # core would fail, leave masks out, or begin with the first again
            raise HyperLoRAError(
                f"A person has {masks} masks, but {len(noise)} picture(s) are painted: "
                "give as many masks as pictures, or one for all of them."
            )
        for hook in cond["hooks"].hooks if "hooks" in cond else ():
            # core's reset forgets this: a run that begins at the noise at which the last one ended would go on from there
            hook.hook_keyframe.reset()
            hook.hook_keyframe._curr_t = -1.0
    return executor(noise, *args, **kwargs)


# one for all Regions, so that core adds it once
BEFORE_SAMPLING = comfy.hooks.TransformerOptionsHook({"wrappers": {WrappersMP.OUTER_SAMPLE: {MARK: [before_sampling]}}})


def add_person(
    positive: Conditioning,
    negative: Conditioning,
    person_prompt: Conditioning | None,
    mask: Tensor | None,
    hooks: comfy.hooks.HookGroup,
    guide: bool = False,
    set_cond_area: str = WHOLE,
) -> list[Conditioning]:
    """Both with one more place, in which the person's hooks work; what no place covers keeps the picture's prompt.

    `guide`: the hooks only work for the positive one.
    """
    (people, picture), (negative_people, negative_picture) = (
        split(positive, "positive"),
        split(negative, "negative"),
    )
    place = {"strength": 1.0, "set_cond_area": set_cond_area, "mask": mask}
    prompt = controlled(person_prompt, picture) if person_prompt else picture
    (wanted,) = comfy.hooks.set_conds_props([for_person(prompt)], **place, hooks=hooks)
    (unwanted,) = comfy.hooks.set_conds_props([for_person(negative_picture)], **place, hooks=None if guide else hooks)
    return [[*people, *wanted, *rest(picture)], [*negative_people, *unwanted, *rest(negative_picture)]]


def split(conditioning: Conditioning, name: str) -> tuple[Conditioning, Conditioning]:
    """What Regions added, and the prompt of the whole picture."""
    people = [entry for entry in conditioning if MARK in entry[1]]
    picture = [entry for entry in conditioning if MARK not in entry[1]]
    if not picture:
        raise HyperLoRAError(f"{name} has no prompt of the whole picture: wire a CLIP Text Encode to the first Region.")
    return people, picture


def for_person(prompt: Conditioning) -> Conditioning:
    """The prompt as a person's, without a place of its own yet."""
    return [
        [
            tokens,
            {key: value for key, value in settings.items() if key not in ("default", "mask", "area")} | {MARK: True},
        ]
        for tokens, settings in prompt
    ]


def controlled(prompt: Conditioning, picture: Conditioning) -> Conditioning:
    """The person's prompt under the ControlNet of the whole picture, where it has none of its own."""
    control = {key: value for key, value in picture[0][1].items() if key in CONTROL}
    return [[tokens, control | settings] for tokens, settings in prompt]


def rest(picture: Conditioning) -> Conditioning:
    """The picture's prompt as core's default for what no mask covers; what has a place of its own keeps it."""
    return [
        [tokens, settings if "mask" in settings or "area" in settings else settings | {"default": True}]
        for tokens, settings in picture
    ]
