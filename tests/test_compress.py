"""Compression to a rank, and column norms that a merge keeps."""

import pytest
import torch
from places import FIXTURES
from safetensors.torch import load_file

from hyperlora_core import HyperLoRAError, merge_branches, save_lora
from hyperlora_core.compress import compress, describe_errors
from hyperlora_core.lora import load_lora, pairs
from hyperlora_core.norms import column_norms, with_norms


@pytest.fixture(scope="module")
def joined():
    """ID and base as one: rank 8 + 4."""
    expected = load_file(FIXTURES / "with_base" / "expected.safetensors")
    id_lora, base_lora = (
        {name.partition(".")[2]: tensor for name, tensor in expected.items() if name.startswith(f"{branch}.")}
        for branch in ("id", "base")
    )
    return merge_branches(id_lora, base_lora, 1.0, 0.4)


def changes(lora: dict) -> dict[str, torch.Tensor]:
    return {pair.key: pair.scale * pair.up @ pair.down for pair in pairs(lora)}


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_nearest_of_its_rank(joined, rank):
    compressed, errors = compress(joined, rank)
    after = changes(compressed)
    for key, whole in changes(joined).items():
        left, values, right = torch.linalg.svd(whole)  # of the full matrix, which compress doesn't build
        nearest = left[:, :rank] * values[:rank] @ right[:rank]
        assert torch.allclose(after[key], nearest, atol=1e-5 * float(values[0]))
        assert errors[key] == pytest.approx(float((whole - after[key]).norm() / whole.norm()), abs=1e-5)
    assert all(len(pair.down) == rank and pair.scale == 1 for pair in pairs(compressed))


def test_enough_rank_loses_nothing(joined):
    compressed, errors = compress(joined, 100)
    after = changes(compressed)
    assert max(errors.values()) == 0
    for key, whole in changes(joined).items():
        assert torch.allclose(after[key], whole, atol=1e-5 * float(whole.abs().max()))


def test_error_falls_with_rank(joined):
    means = [sum(errors.values()) for _, errors in (compress(joined, rank) for rank in (1, 3, 6, 9, 12))]
    assert means == sorted(means, reverse=True) and means[0] > means[-1] == 0


def test_layers_that_change_nothing(joined):
    key = next(pairs(joined)).key
    compressed, errors = compress(
        joined | {f"{key}.lora_up.weight": torch.zeros(joined[f"{key}.lora_up.weight"].shape)}, 2
    )
    assert errors[key] == 0 and not compressed[f"{key}.lora_up.weight"].any()


def test_precision_and_file_stay(joined, tmp_path):
    half = {name: tensor if name.endswith("alpha") else tensor.half() for name, tensor in joined.items()}
    compressed, errors = compress(half, 6)
    assert next(pairs(compressed)).up.dtype == torch.float16
    save_lora(compressed, tmp_path / "small.safetensors")
    again = load_lora(tmp_path / "small.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in compressed.items())
    worst = max(errors, key=errors.get)
    assert describe_errors(errors, 6).startswith("Rank 6: ") and worst in describe_errors(errors, 6)


@pytest.mark.parametrize("rank", [0, -3])
def test_impossible_ranks(joined, rank):
    with pytest.raises(HyperLoRAError, match="choose 1 or more"):
        compress(joined, rank)


def test_a_column_that_is_nearly_cancelled_keeps_its_length_in_half_precision():
    """It is lengthened 16 million times: more than fp16 can say."""
    changed = torch.tensor([[6e-8, 1.0], [0.0, 1.0]], dtype=torch.float16)
    kept = with_norms(changed, torch.tensor([1.0, 2.0]))
    assert kept.dtype == torch.float16
    assert torch.allclose(column_norms(kept), torch.tensor([1.0, 2.0]), atol=1e-3)


def test_columns_keep_their_length():
    weight, change = torch.randn(6, 4), torch.randn(6, 4)
    change[:, 2] = -weight[:, 2]  # a column that the change takes away
    merged = weight + change
    kept = with_norms(merged, column_norms(weight))
    lengths = column_norms(weight)
    lengths[2] = 0
    assert torch.allclose(column_norms(kept), lengths, atol=1e-6)
    # only the lengths change
    assert torch.allclose(torch.nn.functional.cosine_similarity(kept, merged, dim=0)[[0, 1, 3]], torch.ones(3))
