"""Mixing the basis as a GPU does it, tensors of one shape in one product, gives what mixing them one by one gives."""

import pytest
import torch
from bad_inputs import GOOD

from hyperlora_core import basis as basis_module
from hyperlora_core import load_hyperlora, save_hyperlora
from hyperlora_core.locate import DEMO_HYPER, demo_folder


@pytest.fixture
def in_stacks(monkeypatch):
    """From when it is called."""
    return lambda: monkeypatch.setattr(basis_module, "is_gpu", lambda device: True)


def people(hyper, count: int = 3) -> torch.Tensor:
    shape = count, 8 * len(hyper.module_names), hyper.basis.size
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=-1)


def assert_same(lora, expected):
    assert list(lora) == list(expected)
    for key, tensor in lora.items():
        assert torch.allclose(tensor, expected[key], rtol=1e-4, atol=1e-6), key
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes, f"{key} owns its memory"


@pytest.mark.parametrize("largest", [1, 5, 64])
@pytest.mark.parametrize("branch", ["id", "base"])
@pytest.mark.parametrize("how", ["fp16 to fp32", "8 bits", "inference mode"])
def test_stacks_mix_the_same(how, branch, largest, in_stacks, monkeypatch):
    hyper = load_hyperlora(demo_folder() / DEMO_HYPER, eight_bit=how == "8 bits")
    crowd = people(hyper)
    one, many = hyper.lora(crowd[0], branch), hyper.loras(crowd, branch)
    in_stacks()
    monkeypatch.setattr(basis_module, "LARGEST_STACK", largest)
    with torch.inference_mode(how == "inference mode"):
        assert_same(hyper.lora(crowd[0], branch), one)
        for lora, expected in zip(hyper.loras(crowd, branch), many, strict=True):
            assert_same(lora, expected)


def places(hyper) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in hyper.basis.named_parameters()}


def test_a_checkpoint_is_laid_together_once_and_stays_what_it_was(in_stacks, tmp_path):
    hyper = load_hyperlora(GOOD)
    person, before, first = people(hyper)[0], places(hyper), hyper.lora(people(hyper)[0])
    in_stacks()
    hyper.lora(person)
    laid = places(hyper)
    shared = {tensor.untyped_storage().data_ptr() for _, tensor in hyper.basis.named_parameters()}
    assert laid != before and len(shared) < len(laid) / 2, "many tensors share one memory"
    hyper.lora(person)
    assert places(hyper) == laid, "nothing is moved twice"
    save_hyperlora(hyper, tmp_path / "saved")
    assert load_hyperlora(tmp_path / "saved").fingerprint == hyper.fingerprint
    for parameter in hyper.basis.parameters():  # as a host that takes them off the device and brings them back
        parameter.data = parameter.data.clone()
    assert_same(hyper.lora(person), first)


def test_neighbours_by_chance_are_no_stack():
    """Tensors at equal distances, but each in a memory of its own."""
    memory = torch.arange(32.0)
    tensors = [torch.nn.Parameter(part.clone()) for part in memory.view(4, 8)]
    stack = basis_module.laid_together(tensors)
    assert torch.equal(stack, memory.view(4, 8))
    assert basis_module.laid_together(tensors).data_ptr() == stack.data_ptr()
    turned = tensors[::-1]  # the same memory in another order
    assert torch.equal(basis_module.laid_together(turned), memory.view(4, 8).flip(0))


def test_what_an_optimizer_holds_stays_where_it_is(in_stacks):
    hyper = load_hyperlora(GOOD)
    hyper.basis.requires_grad_(True)
    before = places(hyper)
    in_stacks()
    hyper.lora(people(hyper)[0])
    assert places(hyper) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_mixed_in_fp32(dtype):
    """So that only the result is rounded, once."""
    half, exact = load_hyperlora(GOOD, dtype=dtype), load_hyperlora(GOOD)
    person = people(half)[0].to(dtype)
    for key, tensor in half.lora(person).items():
        expected = exact.lora(person)[key]
        assert torch.equal(tensor, expected if key.endswith(".alpha") else expected.to(dtype)), key
