"""A random checkpoint of the published shape (140 modules, 2.97 GB): loaded, mixed, and put on a full SDXL UNet."""

import json
import os
import subprocess
import sys

import pytest
import torch
from find import find_hosts
from places import ROOT

from hyperlora_core.demo.hyperlora import write_random_checkpoint

pytestmark = pytest.mark.slow

GENERATE = """
import json, resource, sys, time
import torch
sys.path.append(sys.argv[1])
from hyperlora_core import Identity, load_hyperlora, save_lora

def anonymous_peak():
    # the mapped file's pages are the page cache's; what is ours is anonymous memory
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1e6

before, start = anonymous_peak(), time.perf_counter()
hyper = load_hyperlora(sys.argv[2])
loaded, after_load = time.perf_counter() - start, anonymous_peak()
torch.manual_seed(0)
start = time.perf_counter()
coefficients = hyper.coefficients(
    clip_tokens=torch.randn(1, 257, 1024), id_embeds=torch.nn.functional.normalize(torch.randn(1, 512), dim=-1)
)
encoded = time.perf_counter() - start
start = time.perf_counter()
lora = hyper.lora(coefficients)
mixed = time.perf_counter() - start
save_lora(lora, sys.argv[3])
print(json.dumps({
    "modules": len(hyper.module_names), "coefficients": list(coefficients.shape), "tensors": len(lora),
    "values": sum(t.numel() for n, t in lora.items() if not n.endswith("alpha")),
    "finite": all(bool(torch.isfinite(t).all()) for t in lora.values()),
    "load_s": loaded, "load_gb": after_load - before, "coefficients_s": encoded, "lora_s": mixed,
}))
"""

HOST = """
import json, sys
sys.argv = [sys.argv[0], "--cpu", *sys.argv[1:]]
lora_path, = sys.argv[2:]
sys.argv = sys.argv[:2]
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.sd, comfy.supported_models, comfy.model_patcher, comfy.utils
sdxl = dict(comfy.supported_models.SDXL.unet_config, image_size=32, in_channels=4, out_channels=4, model_channels=320,
            num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth_middle=10,
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], use_spatial_transformer=True, legacy=False,
            num_classes="sequential", adm_in_channels=2816, use_temporal_attention=False, use_temporal_resblock=False)
config = comfy.supported_models.SDXL(sdxl)
config.set_inference_dtype(torch.float16, None)
model = config.get_model({}, device=torch.device("meta"))
cpu = torch.device("cpu")
patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)
patched, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(lora_path), 0.8, 0)
weights = model.state_dict()
shapes = all(tuple(weights[k].shape) == (p[0][1].weights[0].shape[0], p[0][1].weights[1].shape[1])
             for k, p in patched.patches.items())
print("RESULT" + json.dumps({"patches": len(patched.patches), "shapes": shapes, "weights": sum(w.numel() for w in weights.values())}))
"""


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """(figures of the run, the LoRA file); the 3 GB are gone afterwards."""
    folder = tmp_path_factory.mktemp("published")
    write_random_checkpoint(folder / "checkpoint")
    size = sum(file.stat().st_size for file in (folder / "checkpoint").iterdir())
    assert 3.1e9 < size < 3.2e9  # 2.97 GB of basis, 150 MB resampler, 17 MB projector
    lora = folder / "lora.safetensors"
    run = subprocess.run(
        [sys.executable, "-c", GENERATE, str(ROOT), str(folder / "checkpoint"), str(lora)],
        capture_output=True,
        text=True,
    )
    for file in (folder / "checkpoint").iterdir():
        file.unlink()
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), lora


def test_shapes(generated):
    figures, _ = generated
    print(figures)
    assert figures["modules"] == 140
    assert figures["coefficients"] == [1120, 128]
    assert figures["tensors"] == 3 * 560
    assert figures["values"] == 11_612_160
    assert figures["finite"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_copies_no_basis(generated):
    assert generated[0]["load_gb"] < 0.5


@pytest.mark.host
@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_every_key_finds_its_weight_in_the_host(generated, host):
    run = subprocess.run(
        [sys.executable, "-c", HOST, str(generated[1])], cwd=host, env=os.environ | {"PYTHONPATH": str(host)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "NOT LOADED" not in run.stderr and "lora key not loaded" not in run.stderr
    result = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("RESULT"))[6:])
    assert result["weights"] > 2_500_000_000
    assert result["patches"] == 560
    assert result["shapes"]


def test_every_key_finds_its_layer_in_diffusers(generated):
    """SDXL's UNet in diffusers has exactly these 560 linears; checked without its 5 GB of weights."""
    pytest.importorskip("diffusers")
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    from hyperlora_core import load_lora, to_diffusers
    from hyperlora_core.demo.sdxl import SDXL_BASE, unet_config

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(unet_config(SDXL_BASE))
    weights = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    renamed = to_diffusers(load_lora(generated[1]))
    keys = {name[: -len(".lora_A.weight")] for name in renamed if name.endswith(".lora_A.weight")}
    assert len(keys) == 560
    for key in keys:
        shape = (renamed[f"{key}.lora_B.weight"].shape[0], renamed[f"{key}.lora_A.weight"].shape[1])
        assert weights[f"{key.removeprefix('unet.')}.weight"] == shape
    attention = {
        n
        for n in weights
        if ".attn" in n and n.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
    }
    assert {f"{key.removeprefix('unet.')}.weight" for key in keys} == attention
    assert torch.isfinite(renamed[f"{key}.lora_A.weight"]).all()
