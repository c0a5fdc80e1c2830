"""Which blocks of SDXL a pruned model kept, and LoRAs moved to it."""

import pytest
import torch
from bad_inputs import assert_sentence
from toy_bases import changes, lora_of, pruned, unet

from hyperlora_core import HyperLoRAError
from hyperlora_core.base_layers import LAYOUTS, TensorLayers, layout_name
from hyperlora_core.pruned import in_order, match_blocks
from hyperlora_core.transfer import Bridge, transfer

# which of SDXL's stacks, and which of each one's blocks, stay
KEPT = {
    "SSD-1B": {
        "down_blocks.1": {0: (0, 1), 1: (0, 1)},
        "down_blocks.2": {0: (0, 1, 2, 6), 1: (0, 1, 2, 6)},
        "up_blocks.0": {0: (0, 1, 2, 6), 1: (0, 3, 4, 9), 2: tuple(range(10))},
        "up_blocks.1": {0: (0, 1), 1: (0,), 2: (1,)},
    },
    "Segmind-Vega": {
        "down_blocks.1": {0: (0,), 1: (1,)},
        "down_blocks.2": {0: (0, 6), 1: (2, 3)},
        "up_blocks.0": {0: (0, 9), 1: (4, 5), 2: (0, 1)},
        "up_blocks.1": {0: (0,), 1: (1,), 2: (0,)},
    },
    "KOALA-1B": {
        "down_blocks.1": {0: (0, 1)},
        "down_blocks.2": {1: (0, 1, 3, 5, 7, 9)},
        "mid_block": {0: (0, 2, 4, 5, 7, 8)},
        "up_blocks.0": {0: (0, 1, 2, 3, 4, 5), 1: (2, 3, 5, 6, 8, 9)},
        "up_blocks.1": {1: (0, 1), 2: (0, 1)},
    },
    "KOALA-700M": {
        "down_blocks.1": {1: (0, 1)},
        "down_blocks.2": {0: (0, 2, 4, 6, 8)},
        "up_blocks.0": {0: (0, 1, 2, 3, 4), 2: (5, 6, 7, 8, 9)},
        "up_blocks.1": {0: (0, 1), 1: (0, 1)},
    },
}


def test_every_layout_is_tried():
    assert {*KEPT, "SDXL"} == set(LAYOUTS)


@pytest.mark.parametrize("name", KEPT)
def test_blocks_of_pruned_models_are_found(name):
    whole = unet(LAYOUTS["SDXL"], width=8, context=8)
    left, blocks = pruned(whole, KEPT[name])
    source, target = TensorLayers(whole), TensorLayers(left)
    assert (layout_name(source), layout_name(target)) == ("SDXL", name)

    def read(layers, path):
        return layers.weight(path)

    assert match_blocks(source, target, read) == blocks
    # and back: a LoRA for the pruned model on the whole one
    assert match_blocks(target, source, read) == {new: old for old, new in blocks.items()}


def test_lora_for_a_pruned_model():
    layout = {"down_blocks.2": (4,), "mid_block": (1,)}
    whole = unet(layout, width=32, context=32)
    left, _ = pruned(whole, {"down_blocks.2": {0: (0, 2)}}, noise=0.05)
    lora = lora_of(whole)
    moved = transfer(lora, TensorLayers(whole), TensorLayers(left), 0.5, Bridge(1.0))
    assert set(moved.lora) == set(lora_of(left))
    key = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_{}_attn1_to_q"
    assert torch.allclose(changes(moved.lora)[key.format(1)], changes(lora)[key.format(2)], atol=1e-5)
    assert moved.left_out == [
        f"{block}: left out, the target has no such block"
        for block in (
            "down_blocks.2.attentions.0.transformer_blocks.1",
            "down_blocks.2.attentions.0.transformer_blocks.3",
            "mid_block.attentions.0.transformer_blocks.0",
        )
    ]
    assert "transformer_blocks.1.attn1.to_q: similarity" in moved.report
    assert ", from down_blocks.2.attentions.0.transformer_blocks.2.attn1.to_q" in moved.report


def test_stacks_of_another_depth_and_width_cannot_be_told_apart():
    before, after = unet({"mid_block": (2,)}), unet({"mid_block": (1,)}, width=32)
    with pytest.raises(HyperLoRAError) as error:
        transfer(lora_of(before), TensorLayers(before), TensorLayers(after))
    assert_sentence(str(error.value), ("no attention layer in common",))


def test_a_target_that_lacks_a_linear_in_every_block():
    before, after = unet({"mid_block": (2,)}), unet({"mid_block": (1,)})
    after = {name: tensor for name, tensor in after.items() if "attn2.to_q" not in name}
    assert match_blocks(TensorLayers(before), TensorLayers(after), lambda layers, path: layers.weight(path)) == {}


def test_in_order():
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.9, 0.8, 0.3]])
    assert in_order(scores) == [(0, 1), (1, 2)]  # the largest of each row would cross
    assert in_order(scores.T) == [(1, 0), (2, 1)]
