"""The norm-keeping patch in the host's own weight calculation, without a server."""

import pytest
from find import find_hosts, run_in

PATCH = """
import sys, types
root, sys.argv = sys.argv[1], ["", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.lora, torch
from comfy.weight_adapter import LoRAAdapter
for name, path in (("pack", root), ("pack.nodes", root + "/nodes")):
    sys.modules[name] = types.ModuleType(name)  # without their __init__, which would bring in all nodes
    sys.modules[name].__path__ = [path]
from pack.nodes.norms import NormKeepingLoRA

def calculated(weight, *patches):
    return comfy.lora.calculate_weight([(strength, patch, 1.0, None, None) for strength, patch in patches], weight.clone(), "x")

torch.manual_seed(0)
weight, up, down = torch.randn(12, 8), torch.randn(12, 3), torch.randn(3, 8)
other = LoRAAdapter(set(), (torch.randn(12, 2), torch.randn(2, 8), 2.0, None, None, None))
ours = (up, down, 1.5, None, None, None)
gentle, plain = NormKeepingLoRA(set(), ours), LoRAAdapter(set(), ours)
before = calculated(weight, (0.5, other))
merged = calculated(weight, (0.5, other), (0.8, plain))
assert torch.allclose(merged, before + 0.8 * 0.5 * up @ down, atol=1e-5)
kept = calculated(weight, (0.5, other), (0.8, gentle))
assert torch.allclose(kept, merged * (before.norm(dim=0) / merged.norm(dim=0)), atol=1e-5)
assert torch.allclose(calculated(weight, (0.0, gentle)), weight, atol=1e-6)
half = calculated(weight.half(), (0.8, gentle))
assert half.dtype == torch.float16 and torch.allclose(half.float().norm(dim=0), weight.norm(dim=0), rtol=5e-3)
print("kept")
"""


@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
def test_patch(host):
    result = run_in(host, PATCH)
    assert result.stdout.strip().endswith("kept"), result.stderr[-3000:]
