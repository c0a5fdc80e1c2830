"""Our models in the host's hands: brought when they are used, let go when the host wants the room, and then gone."""

import pytest
from find import find_hosts, run_in

START = """
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
generator = torch.Generator().manual_seed(0)

picture = torch.rand(64, 64, 3, generator=generator).mul(255).byte().numpy()
embeds = torch.nn.functional.normalize(torch.randn(1, 512, generator=generator), dim=-1)
"""

LIFE = """
assert ours() == [], "loading a checkpoint takes no room yet"
tokens = loaded.vision.encode_pictures([picture])
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


# A CPU that passes for a GPU: --lowvram and --novram can't be given together with --cpu, and mean nothing on one.
SHORT_OF_ROOM = """
def tokens():
    return loaded.vision.encode_pictures([picture])

first = tokens()
expected, tower = hyper.lora(hyper.coefficients(first, embeds)), loaded.vision.tower
size = {part: sum(tensor.nbytes for tensor in part.parameters()) for part in (tower, hyper.encoder, hyper.basis)}

def same(tokens):
    lora = hyper.lora(hyper.coefficients(tokens, embeds))
    return all(torch.allclose(tensor, expected[key], rtol=1e-4, atol=1e-6) for key, tensor in lora.items())

def on_device(part):
    return next((loaded.model_loaded_memory() for loaded in management.current_loaded_models
                 if loaded.model is not None and loaded.model.model is part), 0)

management.unload_all_models()
management.is_device_cpu = lambda device: False
management.lowvram_available = True

management.vram_state = management.VRAMState.NO_VRAM  # --novram
assert same(tokens())
assert on_device(hyper.basis) == 0
assert all(on_device(part) < size[part] / 2 for part in (tower, hyper.encoder))

management.unload_all_models()
management.vram_state = management.VRAMState.LOW_VRAM  # --lowvram
free = management.get_free_memory
room = size[hyper.encoder] // 2 + management.minimum_inference_memory()
management.get_free_memory = lambda *args, **kwargs: room - sum(on_device(part) for part in size)
assert same(first)
assert on_device(hyper.basis) == 0 and 0 < on_device(hyper.encoder) < size[hyper.encoder]
management.get_free_memory = free

management.unload_all_models()
management.vram_state = management.VRAMState.NORMAL_VRAM
apply, moved = type(hyper.basis)._apply, []

def full(self, *args, **kwargs):
    moved.append(self)
    if len(moved) == 1:
        raise torch.cuda.OutOfMemoryError("no room")
    return apply(self, *args, **kwargs)

type(hyper.basis)._apply = full
assert same(first), "mixed from main memory"
assert hyper.basis not in ours() and len(moved) > 1
assert same(tokens()) and hyper.basis in ours(), "as soon as there is room, it is used"
print("same")
"""


@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_they_come_and_go(host):
    result = run_in(host, START + LIFE)
    assert result.stdout.strip().endswith("gone"), result.stderr[-3000:]


@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_short_of_room_they_answer_the_same(host):
    result = run_in(host, START + SHORT_OF_ROOM)
    assert result.stdout.strip().endswith("same"), result.stderr[-3000:]
    assert result.stderr.count("mixed from main memory") == 1
