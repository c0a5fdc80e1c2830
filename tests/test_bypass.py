"""LoRAs beside the layers: the same result as in the weights, next to other packs' wrappers, and gone without a trace."""

import itertools

import pytest
import torch
from torch import nn

from hyperlora_core import merge_branches
from hyperlora_core.bypass import Attachment, BypassLoRA
from hyperlora_core.lora import ALPHA, DOWN, UP, pairs

OPERATIONS = torch.nn
WIDTH = 16
PATHS = {"lora_unet_a": "a", "lora_unet_b": "b.0"}


class Packed(nn.Module):
    """A linear layer whose weight lies in int8, in a shape of its own, as in GGUF."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        weight = layer.weight.detach()
        self.scale = weight.abs().max() / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8).flatten(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.view(WIDTH, WIDTH).to(x.dtype) * self.scale, self.bias)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = OPERATIONS.Linear(WIDTH, WIDTH), nn.Sequential(OPERATIONS.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def lora(seed: int, rank: int = 4) -> dict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key in PATHS:
        tensors[key + DOWN] = torch.randn(rank, WIDTH, generator=generator)
        tensors[key + UP] = torch.randn(WIDTH, rank, generator=generator)
        tensors[key + ALPHA] = torch.tensor(rank / 2)
    return tensors


def merged(net: Net, *loras: dict) -> Net:
    """The net with the LoRAs in its weights."""
    with torch.no_grad():
        for pair in itertools.chain(*map(pairs, loras)):
            net.get_submodule(PATHS[pair.key]).weight += pair.scale * pair.up @ pair.down
    return net


def beside(net: nn.Module, *loras: dict, **options) -> Attachment:
    return Attachment(net, [BypassLoRA(one, PATHS) for one in loras], **options)


def untouched(net: Net) -> bool:
    return all("forward" not in layer.__dict__ for layer in net.modules())


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def x():
    return torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(9))


def test_equals_merged_and_leaves_nothing(net, x):
    plain, weights = net(x), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    both = merge_branches(lora(1), lora(2), 0.8, 0.4)
    attachment = beside(net, both)
    wanted = merged(Net(), both)(x)
    assert torch.allclose(net(x), wanted, atol=1e-5) and not torch.allclose(wanted, plain, atol=0.1)
    assert net.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    attachment.remove()
    assert untouched(net) and torch.equal(net(x), plain)
    attachment.remove()
    assert untouched(net)


def test_several_add_up(net, x):
    beside(net, lora(1), lora(2, rank=2))
    assert torch.allclose(net(x), merged(Net(), lora(1), lora(2, rank=2))(x), atol=1e-5)


def test_a_lora_for_some_layers(net, x):
    part = {name: tensor for name, tensor in lora(1).items() if name.startswith("lora_unet_a")}
    beside(net, part, lora(2))
    assert torch.allclose(net(x), merged(Net(), part, lora(2))(x), atol=1e-5)


def test_the_next_person_takes_the_place_of_the_last(net, x):
    """Also where the last was never removed: a model carries one attachment."""
    last = beside(net, lora(1))
    attachment = beside(net, lora(2))
    assert torch.allclose(net(x), merged(Net(), lora(2))(x), atol=1e-5)
    last.remove()
    assert torch.allclose(net(x), merged(Net(), lora(2))(x), atol=1e-5)
    attachment.remove()
    assert untouched(net)


def test_quantised_weights(x):
    net = Net()
    net.a, net.b[0] = Packed(net.a), Packed(net.b[0])
    before, bits = net(x), net.a.weight.clone()
    unpacked = Net()
    with torch.no_grad():
        for path in PATHS.values():
            packed = net.get_submodule(path)
            unpacked.get_submodule(path).weight.copy_(packed.weight.view(WIDTH, WIDTH) * packed.scale)
    attachment = beside(net, lora(1))
    assert torch.allclose(net(x), merged(unpacked, lora(1))(x), atol=1e-4)
    attachment.remove()
    assert torch.equal(net(x), before) and torch.equal(net.a.weight, bits)


def test_precision_of_the_model_and_copies_only_for_a_run(net, x):
    net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    attachment = beside(net, lora(1))
    first = net(x)
    assert first.dtype == torch.bfloat16
    assert torch.allclose(first.float(), merged(Net(), lora(1))(x.float()), atol=0.3)
    (copies,) = attachment._copies.values()
    down, _ = copies[0]["a"]
    assert down.dtype == torch.bfloat16
    assert torch.equal(net(x), first)
    assert attachment._copies[x.device, x.dtype] is copies, "copied again"
    attachment.release()
    assert not attachment._copies
    assert torch.equal(net(x), first)
    attachment.remove()
    assert not attachment._copies


def test_in_the_lora_s_own_precision_nothing_is_copied(net, x):
    one = BypassLoRA(lora(1), PATHS)
    Attachment(net, [one])
    net(x)
    assert one.to(x.device, x.dtype)["a"][0].data_ptr() == one._flat.data_ptr()


def test_unwanted(net, x):
    plain, on = net(x), True
    beside(net, lora(1), wanted=lambda: on)
    assert not torch.equal(net(x), plain)
    on = False
    assert torch.equal(net(x), plain)


def test_some_rest(net, x):
    """By their place in the list, until told otherwise; a LoRA at rest costs no product."""
    plain = net(x)
    attachment = beside(net, lora(1), lora(2), lora(3))
    attachment.rest([0, 1, 2])
    assert torch.equal(net(x), plain) and not attachment._copies
    for resting, working in (((0, 2), [2]), ((1,), [1, 3]), ((), [1, 2, 3])):
        attachment.rest(resting)
        assert torch.allclose(net(x), merged(Net(), *map(lora, working))(x), atol=1e-5)
    attachment.rest([0])
    attachment.remove()
    assert torch.equal(net(x), plain) and untouched(net)


def test_a_model_without_the_layer_stays_as_it_is(net):
    net.b = nn.Sequential()
    with pytest.raises(AttributeError):
        beside(net, lora(1))
    assert untouched(net)


class Foreign:
    """Another pack's bypass, as most are written: keep what was there, put it back."""

    def __init__(self, layer):
        self.layer, self.before = layer, None

    def inject(self):
        self.before = self.layer.forward
        self.layer.forward = lambda x: self.before(x) + 1

    def eject(self):
        self.layer.forward, self.before = self.before, None


@pytest.mark.parametrize("last_off_first", [True, False])
def test_beside_another_pack(net, x, last_off_first):
    """On top of theirs, and off before or after them: the host ejects in the order in which it injects."""
    plain = net(x)
    other = Foreign(net.b[0])
    for _ in range(3):
        other.inject()
        attachment = beside(net, lora(1))
        assert torch.allclose(net(x), merged(Net(), lora(1))(x) + 1, atol=1e-5)
        steps = [attachment.remove, other.eject]
        for step in steps if last_off_first else reversed(steps):
            step()
        assert torch.equal(net(x), plain)
        assert net.b[0].forward.__func__ is type(net.b[0]).forward


def test_under_another_pack(net, x):
    """Taken off while somebody still wraps it: silent at once, and gone for good with the next."""
    plain = net(x)
    attachment, other = beside(net, lora(1)), Foreign(net.b[0])
    other.inject()
    assert torch.allclose(net(x), merged(Net(), lora(1))(x) + 1, atol=1e-5)
    attachment.remove()
    assert torch.equal(net(x), plain + 1)
    other.eject()
    assert torch.equal(net(x), plain)
    beside(net, lora(2)).remove()
    assert untouched(net)


def test_compiled_models_notice_every_change(net, x):
    """A forward hook fails here: compiled code goes on without it."""
    plain = net(x)
    compiled = torch.compile(net, backend="eager")
    with torch.inference_mode():
        for seed in (None, 1, None, 2, 3, None):
            if seed is None:
                assert torch.equal(compiled(x), plain)
                continue
            attachment = beside(net, lora(seed))
            for _ in range(2):
                assert torch.allclose(compiled(x), merged(Net(), lora(seed))(x), atol=1e-5), seed
                attachment.rest([0])
                assert torch.equal(compiled(x), plain)
                attachment.rest([])
            attachment.remove()
    torch.compiler.reset()
