"""Bypass mode in the host's own process, where its ModelPatchers can be asked: run by test_bypass_mode.py.

Prints a JSON of check -> traceback or null.
"""

import gc
import importlib.util
import json
import sys
import traceback
from pathlib import Path

PACK = Path(__file__).parents[2]

sys.argv = [sys.argv[0], "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.hooks  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy_extras.nodes_custom_sampler import Guider_DualCFG  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.hyperlora_core import HyperLoRAError  # noqa: E402
from pack.hyperlora_core.schedule import Schedule  # noqa: E402
from pack.nodes.apply import BYPASS, GUIDE, MERGE, apply, model_layers  # noqa: E402
from pack.nodes.bypass import KEY  # noqa: E402
from pack.nodes.demo_host import load_unet  # noqa: E402
from pack.nodes.region import MustFit  # noqa: E402

MODEL = load_unet(str(PACK / "models" / "demo" / "sdxl"))
LAYERS = {
    key: layer for key, layer in model_layers(MODEL).items() if "attn" in key and key.startswith("lora_unet_down")
}
WIDTH = MODEL.model.model_config.unet_config["context_dim"]
POOLED = MODEL.model.model_config.unet_config["adm_in_channels"] - 6 * 256


def random_lora(seed: int, rank: int = 4) -> dict:
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for key, layer in sorted(LAYERS.items()):  # the host's order isn't always the same
        lora[f"{key}.lora_down.weight"] = torch.randn(rank, layer.shape[1], generator=generator) * 0.1
        lora[f"{key}.lora_up.weight"] = torch.randn(layer.shape[0], rank, generator=generator) * 0.1
        lora[f"{key}.alpha"] = torch.tensor(float(rank))
    return lora


ANNA, ANNA_BASE, BEN = random_lora(1), random_lora(2), random_lora(3)


def put_on(model, lora: dict = ANNA, weight: float = 0.8, base: dict | None = None, mode: str = BYPASS):
    return apply(model, lora, weight, base_lora=base, base_weight=0.4, mode=mode)


def sample(model, callback=None, hooks=None) -> torch.Tensor:
    """Two steps; `callback` after each, `hooks` on the positive prompt."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    positive, negative = (
        (torch.randn(1, 77, WIDTH, generator=generator), {"pooled_output": torch.randn(1, POOLED, generator=generator)})
        for _ in range(2)
    )
    if hooks is not None:
        positive[1]["hooks"] = hooks
    arguments = noise, 2, 3.0, "euler", "normal", [positive], [negative], torch.zeros_like(noise)
    return comfy.sample.sample(model, *arguments, seed=0, callback=callback, disable_pbar=True)


def untouched() -> bool:
    """Whether each layer computes what its class says; core leaves that method on the layer itself."""
    return all(
        getattr(layer.forward, "__func__", None) is type(layer).forward
        for layer in MODEL.model.diffusion_model.modules()
    )


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-3)


def check_merge_and_bypass_agree():
    plain = sample(MODEL)
    for base in (None, ANNA_BASE):
        merged = sample(put_on(MODEL, base=base, mode=MERGE))
        assert not torch.allclose(merged, plain, atol=0.1)
        assert close(sample(put_on(MODEL, base=base)), merged), (sample(put_on(MODEL, base=base)) - merged).abs().max()
    assert torch.equal(sample(MODEL), plain)


def check_weights_are_never_touched():
    weights = {name: tensor.clone() for name, tensor in MODEL.model.state_dict().items()}
    model = put_on(MODEL)
    assert not model.patches and not MODEL.injections
    seen = []
    sample(model, lambda *_: seen.append(all(torch.equal(t, weights[n]) for n, t in MODEL.model.state_dict().items())))
    assert seen == [True, True]


def check_weight_0_is_the_model_itself():
    assert put_on(MODEL, weight=0) is MODEL


def check_changing_the_person_leaves_nothing():
    plain, wanted = sample(MODEL), sample(put_on(MODEL, BEN))
    anna, ben = put_on(MODEL, ANNA), put_on(MODEL, BEN)
    for _ in range(2):
        assert not torch.allclose(sample(anna), wanted, atol=0.1)
        assert torch.equal(sample(ben), wanted)
        assert torch.equal(sample(MODEL), plain) and untouched()


def check_unloading_leaves_nothing():
    sample(put_on(MODEL))
    model = put_on(MODEL)
    sample(model)
    assert not untouched()
    comfy.model_management.unload_all_models()
    assert untouched()
    sample(model)
    del model
    gc.collect()
    assert untouched()


def check_copies_live_as_long_as_a_run():
    halves = {name: t.to(torch.float16) for name, t in ANNA.items()}
    model = put_on(MODEL, halves)
    model.unpatch_hooks = lambda *_: None  # as with dynamic VRAM; else that ejects at the end of a run
    (injection,) = model.get_injections(KEY)
    counts = []
    copies = lambda: sum(len(attachment._copies) for attachment in injection._attached.values())  # noqa: E731
    sample(model, lambda *_: counts.append(copies()))
    assert counts == [1, 1] and copies() == 0


def check_two_in_a_row_add_up():
    two = put_on(put_on(MODEL, ANNA), BEN, 0.5)
    assert len(two.injections) == 1
    merged = put_on(put_on(MODEL, ANNA, mode=MERGE), BEN, 0.5, mode=MERGE)
    assert close(sample(two), sample(merged))
    mixed = put_on(put_on(MODEL, ANNA, mode=MERGE), BEN, 0.5)
    assert close(sample(mixed), sample(merged))


def check_a_loaded_model_can_be_continued():
    """A clone of a model that is loaded is marked as injected by the host, though it isn't."""
    first = put_on(MODEL, ANNA)
    sample(first)
    wanted = sample(put_on(put_on(MODEL, ANNA), BEN, 0.5))
    sample(first)
    assert torch.equal(sample(put_on(first, BEN, 0.5)), wanted)
    assert torch.equal(sample(first), sample(put_on(MODEL, ANNA)))


def check_a_deleted_clone_takes_nothing_along():
    model = put_on(MODEL)
    wanted = sample(model)

    def clone_and_forget(*_):
        model.clone()
        gc.collect()

    assert torch.equal(sample(model, clone_and_forget), wanted)


def core_bypass(model, lora: dict, weight: float = 0.5):
    return comfy.sd.load_bypass_lora_for_models(model, None, dict(lora), weight, 0)[0]


def check_beside_core_s_bypass():
    wanted = sample(put_on(put_on(MODEL, ANNA, mode=MERGE), BEN, 0.5, mode=MERGE))
    plain = sample(MODEL)
    for model in (put_on(core_bypass(MODEL, BEN), ANNA), core_bypass(put_on(MODEL, ANNA), BEN)):
        for _ in range(2):
            assert close(sample(model), wanted)
            assert torch.equal(sample(MODEL), plain) and untouched()
    # one of each, in turn
    ours, theirs = put_on(MODEL, ANNA), core_bypass(MODEL, BEN)
    for _ in range(2):
        assert close(sample(ours), sample(put_on(MODEL, ANNA, mode=MERGE)))
        assert close(sample(theirs), sample(put_on(MODEL, BEN, 0.5, mode=MERGE)))
    assert torch.equal(sample(MODEL), plain) and untouched()


def check_failed_sampling():
    plain, model = sample(MODEL), put_on(MODEL)
    wanted = sample(model)
    (injection,) = model.get_injections(KEY)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, stop)
    assert not any(attachment._copies for attachment in injection._attached.values())
    assert torch.equal(sample(MODEL), plain) and untouched()
    assert torch.equal(sample(model), wanted)


def check_failed_loading():
    """The host injects once more on its way out of a failed load, and forgets about it."""
    plain, model = sample(MODEL), put_on(MODEL)
    comfy.model_management.unload_all_models()

    def no_memory(*_, **__):
        raise MemoryError

    model.load = no_memory
    with pytest.raises(MemoryError):
        sample(model)
    assert torch.equal(sample(MODEL), plain)
    assert torch.equal(sample(put_on(MODEL, BEN)), sample(put_on(MODEL, BEN)))
    assert torch.equal(sample(MODEL), plain)
    del model.load
    assert close(sample(model), sample(put_on(MODEL, mode=MERGE)))
    assert torch.equal(sample(MODEL), plain) and untouched()


def check_hooks_on_the_conditioning():
    """Core's hooks make the host eject and inject while it samples."""
    hooks = comfy.hooks.create_hook_lora(
        {f"diffusion_model.{name}": t for name, t in native_names(BEN).items()}, strength_model=0.5, strength_clip=0
    )

    wanted = sample(put_on(MODEL, ANNA, mode=MERGE), hooks=hooks)
    assert not torch.allclose(wanted, sample(put_on(MODEL, ANNA, mode=MERGE)), atol=0.05)
    assert close(sample(put_on(MODEL, ANNA), hooks=hooks), wanted)


def native_names(lora: dict) -> dict:
    return {
        name.replace(key, LAYERS[key].path.removeprefix("diffusion_model."), 1): tensor
        for name, tensor in lora.items()
        for key in [name.split(".")[0]]
    }


def first_answers(
    model, guider_of: type = comfy.samplers.CFGGuider, cfg: tuple = (3.0,), area: int | None = None
) -> list[torch.Tensor]:
    """What the model says of each conditioning in a run's first step, in the guider's order.

    `area`: which of them has a second prompt, for the upper half of the picture.
    """
    said = []

    def note(executor, *args):
        said.append(executor(*args))
        return said[-1]

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "note", note)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 16, 16, generator=generator)
    conds = [
        [
            [
                torch.randn(1, 77, WIDTH, generator=generator),
                {"pooled_output": torch.randn(1, POOLED, generator=generator)},
            ]
        ]
        for _ in range(2 + len(cfg) - 1)
    ]
    if area is not None:
        ((tokens, settings),) = conds[area]
        conds[area].append([tokens.flip(1), settings | {"area": (8, 16, 0, 0), "strength": 1.0}])
    guider = guider_of(model)
    guider.set_conds(*conds)
    guider.set_cfg(*cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=0
    )
    assert len(said) == 2
    return said[0]


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of a first step's answers, which a LoRA changes by a hundredth and more."""
    return (a - b).abs().max() > 0.005


def check_guided_the_negative_prompt_has_no_person():
    plain, bypass, guided = (first_answers(model) for model in (MODEL, put_on(MODEL), put_on(MODEL, mode=GUIDE)))
    assert close(guided[0], bypass[0]) and differ(bypass[0], plain[0])
    assert close(guided[1], plain[1]) and differ(bypass[1], plain[1])
    again = first_answers(put_on(MODEL))
    assert all(map(torch.equal, again, bypass)), "what was guided has left something"


def check_guided_where_one_side_has_an_area():
    """Core gives the other side a copy of that prompt, with its id."""
    for area in (0, 1):
        plain, bypass, guided = (
            first_answers(model, area=area) for model in (MODEL, put_on(MODEL), put_on(MODEL, mode=GUIDE))
        )
        assert close(guided[0], bypass[0]) and differ(bypass[0], plain[0]), area
        assert close(guided[1], plain[1]) and differ(bypass[1], plain[1]), area


def check_guided_by_a_guider_that_begins_with_the_negative_prompt():
    plain, bypass, guided = (
        first_answers(model, Guider_DualCFG, (3.0, 2.0)) for model in (MODEL, put_on(MODEL), put_on(MODEL, mode=GUIDE))
    )
    assert close(guided[0], plain[0]) and differ(bypass[0], plain[0])
    assert close(guided[1], bypass[1]) and close(guided[2], bypass[2])


def check_guided_beside_one_that_is_for_all():
    """An earlier LoRA keeps its own way, and only the guided one leaves the negative prompt alone."""
    both, ben = first_answers(put_on(put_on(MODEL, BEN, 0.5), ANNA)), first_answers(put_on(MODEL, BEN, 0.5))
    for model in (put_on(put_on(MODEL, BEN, 0.5), mode=GUIDE), put_on(put_on(MODEL, mode=GUIDE), BEN, 0.5)):
        guided = first_answers(model)
        assert close(guided[0], both[0]) and close(guided[1], ben[1]) and differ(both[1], ben[1])


class Packed(torch.nn.Module):
    """A linear layer as GGUF has it: int8 in a shape of its own."""

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale = layer.weight.abs().max() / 127
        packed = (layer.weight / self.scale).round().to(torch.int8).flatten()
        self.weight, self.bias = torch.nn.Parameter(packed, requires_grad=False), layer.bias

    def forward(self, x):
        weight = self.weight.view(self.out_features, self.in_features).to(x.dtype) * self.scale
        return torch.nn.functional.linear(x, weight, self.bias)


def check_quantised_weights():
    model = load_unet(str(PACK / "models" / "demo" / "sdxl"))
    unpacked = load_unet(str(PACK / "models" / "demo" / "sdxl"))
    for layer in LAYERS.values():
        parent, _, name = layer.path.rpartition(".")
        packed = Packed(model.model.get_submodule(layer.path))
        setattr(model.model.get_submodule(parent), name, packed)
        twin = unpacked.model.get_submodule(layer.path)
        twin.weight.data = (packed.weight.float() * packed.scale).view_as(twin.weight)
    plain = sample(model)
    assert close(plain, sample(unpacked))
    assert close(sample(put_on(model, base=ANNA_BASE)), sample(put_on(unpacked, base=ANNA_BASE, mode=MERGE)))
    with pytest.raises(HyperLoRAError, match=r"attn\d\.to_\w+.* is quantised.*: use mode bypass"):
        apply(model, ANNA, 0.8, mode=MERGE, schedule=Schedule(0.2, 1.0))
    with pytest.raises(HyperLoRAError, match=r"is quantised.*: use an unquantised model"):
        MustFit(ANNA)(None, model, {}, {}, None)
    assert torch.equal(sample(model), plain)


def run(check) -> str | None:
    try:
        with torch.inference_mode():
            check()
    except AssertionError:  # whatever else is raised ends the script, and is told on stderr
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    checks = {name: check for name, check in list(globals().items()) if name.startswith("check_")}
    print(json.dumps({name: run(check) for name, check in checks.items()}))
