"""LoRAs moved to another base, on small random matrices."""

import pytest
import torch
from bad_inputs import assert_sentence
from toy_bases import CONTEXT, LAYER, ONE_BLOCK, changes, lora_of, pruned, unet

from hyperlora_core import HyperLoRAError
from hyperlora_core.base_layers import TensorLayers, depths
from hyperlora_core.subspace import leading
from hyperlora_core.transfer import COMPARED, Bridge, transfer


def near(one: torch.Tensor, two: torch.Tensor) -> bool:
    """As near as a bridge's half precision."""
    return bool((one - two).norm() <= 5e-3 * two.norm())


class Counted(TensorLayers):
    read = 0

    def weight(self, path: str) -> torch.Tensor:
        self.read += 1
        return super().weight(path)


# passages


def test_same_width_is_projected_on_the_targets_leading_subspaces():
    before, after = unet(ONE_BLOCK, 0), unet(ONE_BLOCK, 1)
    lora = lora_of(before)
    moved = transfer(lora, TensorLayers(before), TensorLayers(after), 0, Bridge(0.5))
    wanted = changes(lora)
    for (key, found), layer in zip(changes(moved.lora).items(), moved.layers, strict=True):
        weight = after[f"{layer.target}.weight"]
        left, _, right = torch.linalg.svd(weight)
        count = min(weight.shape) // 2
        left, right = left[:, :count], right[:count].T
        projected = left @ left.T @ wanted[key] @ right @ right.T
        assert near(found, projected), key
        assert layer.kept == pytest.approx(float(projected.norm() / wanted[key].norm()), abs=0.01)
    assert len(moved.layers) == 8 and moved.lora.keys() == lora.keys()


def test_all_directions_of_a_layer_of_the_same_width_change_nothing():
    before = unet(ONE_BLOCK)
    lora = lora_of(before)
    moved = transfer(lora, TensorLayers(before), TensorLayers(unet(ONE_BLOCK, 1)), 0, Bridge(1.0))
    assert len(moved.layers) == 8 and all(layer.kept == pytest.approx(1) for layer in moved.layers)
    assert all(torch.allclose(changes(moved.lora)[key], change, atol=1e-5) for key, change in changes(lora).items())


def test_other_widths_go_by_least_squares():
    before, after = unet(ONE_BLOCK, 0, 24, 16), unet(ONE_BLOCK, 1, 32, 20)
    lora = lora_of(before)
    moved = transfer(lora, TensorLayers(before), TensorLayers(after), 0.9, Bridge(0.5))
    (key,) = [key for key in changes(lora) if key.endswith("attn2_to_k")]
    here, there = (leading(tensors[f"{LAYER}.weight"], 8) for tensors in (before, after))

    def least_squares(side: int) -> torch.Tensor:
        """argmin ||P here - there||, of least size."""
        return (there[side] @ torch.linalg.pinv(here[side])).contiguous()

    assert near(changes(moved.lora)[key], least_squares(0) @ changes(lora)[key] @ least_squares(1).T)
    assert all(layer.similarity is None and layer.kept for layer in moved.layers)
    assert "width differs" in moved.report


def test_another_width_on_one_side_has_the_others_signs():
    """A target that is the source behind a change of the text's basis: the change must follow that basis."""
    before = {f"{LAYER}.weight": unet(ONE_BLOCK)[f"{LAYER}.weight"]}
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(20, CONTEXT, generator=generator)).Q.T  # (16, 20)
    lora = lora_of(before)
    after = {f"{LAYER}.weight": before[f"{LAYER}.weight"] @ basis}
    moved = transfer(lora, TensorLayers(before), TensorLayers(after), 0.9, Bridge(0.5))
    left, right = leading(before[f"{LAYER}.weight"], 8)
    (change,), (found,) = changes(lora).values(), changes(moved.lora).values()
    assert near(found, left @ left.T @ change @ right @ right.T @ basis)
    assert moved.layers[0].similarity == pytest.approx(1, abs=1e-3)


# similarity


def test_layers_below_the_threshold_are_left_out_and_named():
    before = unet({"mid_block": (1,)}, width=64, context=64)
    after = dict(before)
    strange = "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    after[f"{strange}.weight"] = unet(ONE_BLOCK, 7, 64, 64)[f"{strange}.weight"]
    lora = lora_of(before)
    moved = transfer(lora, TensorLayers(before), TensorLayers(after), 0.5)
    by_path = {layer.target: layer for layer in moved.layers}
    assert by_path[strange].similarity < 0.4 and by_path[strange].kept is None
    assert all(layer.similarity == pytest.approx(1, abs=1e-3) for path, layer in by_path.items() if path != strange)
    (line,) = moved.left_out
    assert strange in line and f"{by_path[strange].similarity:.2f} is below 0.50" in line
    assert "7 of 8 layers" in moved.summary and not any("attn1_to_v" in key for key in moved.lora)
    assert len(moved.report.splitlines()) == 1 + 1 + 7


def test_similarity_falls_with_distance_to_chance():
    before, noise = unet(ONE_BLOCK, 0, 64, 64), unet(ONE_BLOCK, 1, 64, 64)
    means = []
    for amount in (0, 0.1, 0.5, 100):
        after = {name: weight + amount * noise[name] for name, weight in before.items()}
        layers = transfer(lora_of(before), TensorLayers(before), TensorLayers(after), 0).layers
        means.append(sum(layer.similarity for layer in layers) / len(layers))
    assert means == sorted(means, reverse=True) and means[0] == pytest.approx(1, abs=1e-3)
    assert means[-1] == pytest.approx(COMPARED, abs=0.06)


# once for each pair of models


def test_the_next_lora_reads_no_weight_again():
    layout = {"down_blocks.2": (3,)}
    before = unet(layout)
    after, _ = pruned(before, {"down_blocks.2": {0: (0, 2)}})
    source, target, bridge = Counted(before), Counted(after), Bridge()
    first, second = (lora_of(before, seed) for seed in (1, 2))
    transfer(first, source, target, 0, bridge)
    assert source.read and target.read
    source.read = target.read = 0
    moved = transfer(second, source, target, 0, bridge)
    assert source.read == target.read == 0
    alone = transfer(second, TensorLayers(before), TensorLayers(after), 0)
    assert all(torch.equal(moved.lora[name], tensor) for name, tensor in alone.lora.items())


def test_progress_and_stop():
    before = unet(ONE_BLOCK)
    told, bridge = [], Bridge()
    layers = TensorLayers(before)
    transfer(lora_of(before), layers, layers, 0, bridge, progress=lambda *step: told.append(step))
    assert told == sorted(told) and told[0] == (0, 8) and told[-1] == (8, 8)

    class Stop(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise Stop

    bridge = Bridge()
    with pytest.raises(Stop):
        transfer(lora_of(before), layers, layers, 0, bridge, progress=stop)
    assert len(bridge.passages) == 3


def test_precision_stays():
    before = unet(ONE_BLOCK)
    half = {name: tensor if name.endswith("alpha") else tensor.half() for name, tensor in lora_of(before).items()}
    layers = TensorLayers({name: tensor.bfloat16() for name, tensor in before.items()})
    moved = transfer(half, layers, layers, 0)
    assert {tensor.dtype for name, tensor in moved.lora.items() if "lora" in name and not name.endswith("alpha")} == {
        torch.float16
    }


# bad input

GOOD = unet(ONE_BLOCK)


def spoiled(tensors: dict, name: str, value: float) -> dict:
    return tensors | {name: tensors[name].clone().index_fill(0, torch.tensor([0]), value)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lora": lora_of(unet({"down_blocks.2": (1,)}))}, ("doesn't fit the source model", "down_blocks_2")),
        ({"lora": lora_of(unet(ONE_BLOCK, width=12))}, ("doesn't fit the source model", "12 x 12", "24 x 24")),
        ({"lora": {}}, ("isn't a LoRA",)),
        ({"lora": lora_of({"mid_block.resnets.0.conv1.weight": torch.zeros(4, 4)})}, ("not the name of an attention",)),
        (
            {"lora": spoiled(lora_of(GOOD), f"lora_unet_{LAYER.replace('.', '_')}.lora_up.weight", float("nan"))},
            (LAYER.replace(".", "_"), "NaN"),
        ),
        ({"source": spoiled(GOOD, f"{LAYER}.weight", float("inf"))}, (f"The source model's {LAYER} holds NaN",)),
        ({"target": spoiled(GOOD, f"{LAYER}.weight", float("nan"))}, (f"The target model's {LAYER} holds NaN",)),
        ({"target": unet({"up_blocks.1": (1,)})}, ("no attention layer in common",)),
        ({"target": {}}, ("no attention layer in common",)),
        ({"target": unet(ONE_BLOCK, 1), "threshold": 0.99}, ("highest similarity", "threshold 0.99")),
        ({"threshold": float("nan")}, ("nan isn't a threshold",)),
        ({"threshold": 1.5}, ("1.5 isn't a threshold",)),
    ],
)
def test_bad_input(arguments, words):
    given = {"lora": lora_of(GOOD), "source": GOOD, "target": GOOD, "threshold": 0.5} | arguments
    with pytest.raises(HyperLoRAError) as error:
        transfer(given["lora"], TensorLayers(given["source"]), TensorLayers(given["target"]), given["threshold"])
    assert_sentence(str(error.value), words)


@pytest.mark.parametrize("directions", [0, -1, 1.01, float("nan")])
def test_impossible_directions(directions):
    with pytest.raises(HyperLoRAError, match="isn't a share"):
        Bridge(directions)


def test_packed_weights_are_refused():
    class Packed(TensorLayers):
        def weight(self, path):
            return super().weight(path).flatten()

    eight_bits = {name: (tensor * 40).to(torch.int8) for name, tensor in GOOD.items()}
    for layers in (Packed(GOOD), TensorLayers(eight_bits)):
        with pytest.raises(HyperLoRAError, match="unquantised"):
            transfer(lora_of(GOOD), TensorLayers(GOOD), layers)


def test_attentions_of_another_kind_are_passed_over():
    """As an AnimateDiff UNet has them."""
    strange = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q.weight"
    layers = TensorLayers(GOOD | {strange: torch.zeros(8, 8)})
    assert layers.shapes == TensorLayers(GOOD).shapes
    assert depths(layers) == depths(TensorLayers(GOOD))
