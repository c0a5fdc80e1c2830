"""Bypass mode: what a person beside the layers costs in each sampling step, and changing the person."""

import copy

import torch

from hyperlora_core import load_hyperlora, merge_branches
from hyperlora_core.bypass import Attachment, BypassLoRA
from hyperlora_core.demo.sdxl import DEMO, SDXL_BASE, TIME_IDS, SDXLSize, unet_config
from hyperlora_core.lora import diffusers_path, pairs
from hyperlora_core.packages import require

from .apply import BASE_WEIGHT, ID_WEIGHT
from .bench import Bench
from .ceilings import Work
from .counting import bytes_of, flops_of
from .loras import id_and_base

GROUP = "sampling step"
PROMPTS = 2  # with and without the prompt, as for CFG
TOKENS = 77


def measure(bench: Bench) -> None:
    hyper = load_hyperlora(bench.checkpoint)
    size = SDXL_BASE if bench.published else DEMO
    bench.starting(f"{GROUP}: making an untrained UNet")
    unet = random_unet(size, bench.device, bench.dtype)
    # the same weights behind other modules, so that both can be measured in turn
    other = copy.deepcopy(unet, {id(weight): weight for weight in unet.parameters()})
    step, plain_step = _step(bench, unet, size), _step(bench, other, size)
    people = [merge_branches(*id_and_base(hyper, bench.seed + n), ID_WEIGHT, BASE_WEIGHT) for n in (0, 2)]
    paths = {key: diffusers_path(key, size.res_blocks) for key, *_ in pairs(people[0])}
    attachment = Attachment(unet, [BypassLoRA(people[0], paths)])
    alone, beside = flops_of(plain_step), flops_of(step)
    plain, with_person = bench.alternate(GROUP, [plain_step, step])

    weights, lora = bytes_of(unet), bytes_of(t for name, t in people[0].items() if "lora_" in name)
    picture = f"{8 * bench.latent} px, {bench.precision}"
    bench.add(GROUP, f"plain, {picture}", plain, works=[Work(weights, alone, bench.precision)])
    work = Work(weights + lora, beside, bench.precision)
    bench.add(GROUP, f"a person beside the layers, {picture}", with_person, works=[work])
    bench.add(
        GROUP,
        "a person beside the layers, against plain",
        [on / off for on, off in zip(with_person, plain, strict=True)],
        "x",
        floor=beside / alone,
        note="floor: multiplications with, against without",
    )

    def change() -> None:
        nonlocal attachment, people
        people = people[::-1]
        attachment.remove()
        attachment = Attachment(unet, [BypassLoRA(people[0], paths)])

    # one copy of the LoRA into a piece of memory; its way to the device and precision is part of the first step
    (changing,) = bench.alternate("change the person", [change])
    attachment.remove()
    bench.add("change the person", "bypass: another LoRA beside the layers", changing, works=[Work(2 * lora)])


def random_unet(size: SDXLSize, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """diffusers' UNet with untrained weights, straight on the device."""
    diffusers = require("diffusers", "Measuring a sampling step")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(unet_config(size))
    unet = unet.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for weight in unet.parameters():
        weight.uniform_(-0.02, 0.02)
    return unet


def _step(bench: Bench, unet: torch.nn.Module, size: SDXLSize):
    generator = torch.Generator().manual_seed(bench.seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(bench.device, bench.dtype)

    latents = random(PROMPTS, 4, bench.latent, bench.latent)
    prompt = random(PROMPTS, TOKENS, size.context_width)
    conditions = {"text_embeds": random(PROMPTS, size.text[1].width), "time_ids": random(PROMPTS, TIME_IDS)}

    @torch.no_grad()
    def step() -> None:
        unet(latents, 500, encoder_hidden_states=prompt, added_cond_kwargs=conditions)

    return step
