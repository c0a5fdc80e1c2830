"""Applying, sampling and memory in a real ComfyUI's own process; started by `python -m benchmarks --comfyui FOLDER`.

Prints a JSON: what was measured -> samples.
"""

import argparse
import asyncio
import importlib.util
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=Path)
parser.add_argument("--published", action="store_true")
parser.add_argument("--repetitions", type=int, default=3)
parser.add_argument("--latent", type=int, default=16)
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

# the host reads the command line itself
sys.argv = [sys.argv[0], "--cpu"] if options.device == "cpu" else sys.argv[:1]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy_api.latest  # noqa: E402, F401
import torch  # noqa: E402

import nodes  # noqa: E402, F401

start = time.perf_counter()
spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)


async def register() -> None:
    extension = await pack.comfy_entrypoint()
    await extension.on_load()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()


asyncio.run(register())
IMPORT_SECONDS = time.perf_counter() - start

from pack.hyperlora_core.basis import VECTORS_PER_MODULE  # noqa: E402
from pack.nodes.apply import BYPASS, MERGE, apply  # noqa: E402
from pack.nodes.demo_host import load_unet  # noqa: E402
from pack.nodes.host import LoadedHyperLoRA  # noqa: E402

# last, so that the host's `nodes` stays the host's
sys.path.append(str(ROOT))
from benchmarks.speed.loras import id_and_base  # noqa: E402

management = comfy.model_management
WEIGHT, BASE_WEIGHT = 0.8, 0.4
STEPS = 3  # of which the first, which also loads, counts for the change of the person and not for a step
SDXL_WEIGHTS = 2_567_463_684
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
    "num_classes": "sequential", "use_spatial_transformer": True, "use_linear_in_transformer": True,
    "use_temporal_attention": False, "use_temporal_resblock": False, "legacy": False,
}  # fmt: skip


def untrained_sdxl():
    """SDXL's UNet with any weights, as the host's MODEL, in the precision that the host chooses."""
    config = comfy.supported_models.SDXL(SDXL)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    supported = config.supported_inference_dtypes
    dtype = management.unet_dtype(model_params=SDXL_WEIGHTS, supported_dtypes=supported, weight_dtype=torch.float16)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = config.get_model({}, device=offload)
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)


def sample(model) -> list[float]:
    """Seconds until each step was done, from the call on."""
    config = model.model.model_config.unet_config
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, options.latent, options.latent, generator=generator)
    pooled = config["adm_in_channels"] - 6 * 256
    positive, negative = (
        (
            torch.randn(1, 77, config["context_dim"], generator=generator),
            {"pooled_output": torch.randn(1, pooled, generator=generator)},
        )
        for _ in range(2)
    )
    ends = []

    def after_step(*_) -> None:
        synchronize()
        ends.append(time.perf_counter())

    synchronize()
    begin = time.perf_counter()
    arguments = noise, STEPS, 3.0, "euler", "normal", [positive], [negative], torch.zeros_like(noise)
    comfy.sample.sample(model, *arguments, seed=0, callback=after_step, disable_pbar=True)
    return [end - begin for end in ends]


def synchronize() -> None:
    if management.get_torch_device().type != "cpu":
        getattr(torch, management.get_torch_device().type).synchronize()


def one_step(ends: list[float]) -> float:
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def on_gpu(*modules: torch.nn.Module) -> float:
    """GB of these modules that aren't in main memory."""
    return sum(w.nbytes for module in modules for w in module.parameters() if w.device.type != "cpu") / 1e9


def main() -> dict[str, list[float]]:
    loaded = LoadedHyperLoRA(options.checkpoint, lambda _width: None, "auto")
    hyper = loaded.hyper
    anna, ben = id_and_base(hyper, 0), id_and_base(hyper, 2)
    model = untrained_sdxl() if options.published else load_unet(str(ROOT / "models" / "demo" / "sdxl"))
    figures: dict[str, list[float]] = {"import": [IMPORT_SECONDS]}

    def measured(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    def with_person(person, mode: str):
        return apply(model, person[0], WEIGHT, base_lora=person[1], base_weight=BASE_WEIGHT, mode=mode)

    def as_two():
        once = comfy.sd.load_lora_for_models(model, None, anna[0], WEIGHT, 0)[0]
        return comfy.sd.load_lora_for_models(once, None, anna[1], BASE_WEIGHT, 0)[0]

    def seconds(call) -> float:
        begin = time.perf_counter()
        patched = call()
        management.load_models_gpu([patched])
        synchronize()
        taken = time.perf_counter() - begin
        management.load_models_gpu([model])  # takes the patches out again
        return taken

    joined, two = with_person(anna, MERGE), as_two()
    figures["patches joined"] = [float(sum(map(len, joined.patches.values())))]
    figures["patches two"] = [float(sum(map(len, two.patches.values())))]
    sample(model)
    for _ in range(options.repetitions):
        measured("apply joined", seconds(lambda: with_person(anna, MERGE)))
        measured("apply two", seconds(as_two))
        plain = sample(model)
        measured("step plain", one_step(plain))
        for mode in (MERGE, BYPASS):
            again = sample(with_person(anna, mode))  # the other person is in now
            again = sample(held := with_person(ben, mode))
            measured(f"step {mode}", one_step(again))
            # the same person once more: what is left of the first step is the step
            measured(f"change {mode}", max(again[0] - sample(held)[0], 0.0))
    if management.get_torch_device().type != "cpu":
        shape = VECTORS_PER_MODULE * len(hyper.module_names), hyper.basis.size
        hyper.lora(torch.nn.functional.normalize(torch.randn(shape), dim=-1))
        figures["GB after generating"] = [on_gpu(hyper.basis, hyper.encoder)]
        # what the host does when a sampler needs the room
        management.free_memory(1e30, management.get_torch_device())
        figures["GB held while sampling"] = [on_gpu(hyper.basis, hyper.encoder)]
    return figures


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(main()))
