"""Our models in the host's hands: brought when they are used, let go when the host wants the room, and then gone."""

import pytest
from find import find_hosts, run_in

LIFE = """
import gc, importlib.util, sys, weakref
from pathlib import Path
root, sys.argv = Path(sys.argv[1]), ["", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.model_management as management
import torch

spec = importlib.util.spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.nodes.host import LoadedHyperLoRA

demo = root / "models" / "demo"

def ours():
    return [loaded.model.model for loaded in management.current_loaded_models if loaded.model is not None]

loaded = LoadedHyperLoRA(demo / "hyper_lora", lambda width: demo / "clip_vision" / "model.safetensors", "fp32")
hyper = loaded.hyper
assert ours() == [], "loading a checkpoint takes no room yet"
generator = torch.Generator().manual_seed(0)
tokens = loaded.vision.encode_pictures([torch.rand(64, 64, 3, generator=generator).mul(255).byte().numpy()])
embeds = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=-1)
coefficients = hyper.coefficients(tokens, embeds)
assert hyper.encoder in ours() and loaded.vision.tower in ours() and hyper.basis not in ours()
lora = hyper.lora(coefficients)
assert hyper.basis in ours()

management.free_memory(1e30, management.get_torch_device())  # as before sampling a model that wants all of it
assert ours() == [], "the host got its room"
again = hyper.lora(hyper.coefficients(tokens, embeds))
assert all(torch.equal(tensor, again[key]) for key, tensor in lora.items()), "brought back, they answer the same"

management.unload_all_models()
parts = [weakref.ref(part) for part in (hyper, hyper.basis, hyper.encoder, loaded.vision.tower)]
del loaded, hyper
gc.collect()
assert [part() for part in parts] == [None] * 4, "somebody still holds them"
print("gone")
"""


@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_they_come_and_go(host):
    result = run_in(host, LIFE)
    assert result.stdout.strip().endswith("gone"), result.stderr[-3000:]
