"""Mixing the basis: on a GPU, tensors of one shape in one product, and on a CPU, one by one; and its way there and back."""

import pytest
import torch
from bad_inputs import GOOD

from hyperlora_core import basis as basis_module
from hyperlora_core import load_hyperlora
from hyperlora_core.locate import DEMO_HYPER, demo_folder


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """From when it is called."""
    return lambda: monkeypatch.setattr(basis_module, "is_gpu", lambda device: True)


def people(hyper, count: int = 3) -> torch.Tensor:
    shape = count, 8 * len(hyper.module_names), hyper.basis.size
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(rows, dim=-1)


def assert_same(lora, expected, rtol: float):
    assert list(lora) == list(expected)
    for key, tensor in lora.items():
        size = expected[key].abs().max().item()
        assert torch.allclose(tensor.float(), expected[key].float(), rtol=rtol, atol=rtol * size), key
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes, f"{key} owns its memory"


@pytest.mark.parametrize("largest", [1, 5, 32])
@pytest.mark.parametrize("branch", ["id", "base"])
@pytest.mark.parametrize(
    ("dtype", "eight_bit", "rtol"),
    [
        (torch.float32, False, 1e-5),
        (torch.float32, True, 1e-5),
        (torch.float16, False, 2e-3),
        (torch.float16, True, 2e-3),
    ],
)
def test_many_in_one_product_are_the_same(dtype, eight_bit, rtol, branch, largest, as_on_a_gpu, monkeypatch):
    hyper = load_hyperlora(demo_folder() / DEMO_HYPER, dtype=dtype, eight_bit=eight_bit)
    crowd = people(hyper)
    one, many = hyper.lora(crowd[0], branch), hyper.loras(crowd, branch)
    as_on_a_gpu()
    monkeypatch.setattr(basis_module, "LARGEST_STACK", largest)
    with torch.inference_mode():
        assert_same(hyper.lora(crowd[0], branch), one, rtol)
        for lora, expected in zip(hyper.loras(crowd, branch), many, strict=True):
            assert_same(lora, expected, rtol)


def test_few_calls_mix_many_tensors(as_on_a_gpu, monkeypatch):
    hyper, calls, product = load_hyperlora(demo_folder() / DEMO_HYPER), [], torch.bmm
    as_on_a_gpu()
    monkeypatch.setattr(torch, "bmm", lambda *both: calls.append(both) or product(*both))
    hyper.lora(people(hyper)[0])
    assert 0 < len(calls) < len(hyper.basis.keys) / 4


def test_gradients_go_one_by_one(as_on_a_gpu, monkeypatch):
    """In one product they would keep a copy of the basis."""
    hyper = load_hyperlora(GOOD)
    as_on_a_gpu()
    monkeypatch.setattr(torch, "bmm", None)
    coefficients = people(hyper, 2).requires_grad_()
    mixed = hyper.basis.mixed(coefficients, "id")
    sum((down.sum() + up.sum()) for down, up in mixed.values()).backward()
    assert (coefficients.grad.abs().sum(-1) > 0).all(), "each row of each person has one"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_cpu_is_mixed_in_fp32(dtype):
    """So that only the result is rounded, once."""
    half, exact = load_hyperlora(GOOD, dtype=dtype), load_hyperlora(GOOD)
    person = people(half)[0].to(dtype)
    for key, tensor in half.lora(person).items():
        expected = exact.lora(person)[key]
        assert torch.equal(tensor, expected if key.endswith(".alpha") else expected.to(dtype)), key


def places(hyper) -> dict[str, tuple[str, int]]:
    return {name: (tensor.device.type, tensor.data_ptr()) for name, tensor in hyper.basis.named_parameters()}


def test_back_from_a_device_it_lies_where_it_lay():
    """Mapped from the file, not in memory of its own; "meta" keeps no numbers, so that they can't be copied back from it."""
    hyper = load_hyperlora(GOOD)
    before, person = places(hyper), people(hyper)[0]
    expected = hyper.lora(person)
    for _ in range(2):
        hyper.basis.to("meta")
        assert {device for device, _ in places(hyper).values()} == {"meta"}
        hyper.basis.to("meta")  # there already
        hyper.basis.to("cpu")
        assert places(hyper) == before
        assert_same(hyper.lora(person), expected, rtol=0)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_trained_or_converted_is_copied_back(when):
    hyper = load_hyperlora(GOOD)
    hyper.basis.requires_grad_(when == "before")
    hyper.basis.to("meta")
    hyper.basis.requires_grad_(True)
    with pytest.raises(NotImplementedError, match="meta"):
        hyper.basis.to("cpu")
    other = load_hyperlora(GOOD)
    other.basis.to("meta")
    other.basis.to(torch.float64)
    with pytest.raises(NotImplementedError, match="meta"):
        other.basis.to("cpu")
