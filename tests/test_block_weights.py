"""Block weights: both spellings of a layer, the most detailed entry first, presets, and what isn't a block."""

import math

import pytest
import torch
from bad_inputs import assert_sentence

from hyperlora_core import HyperLoRAError
from hyperlora_core.block_weights import ALIKE, PRESETS, parse_block_weights, weigh_blocks
from hyperlora_core.lora import ALPHA, DOWN, UP

LINEAR = "_transformer_blocks_0_attn1_to_q"
# diffusers' spelling -> that of the original checkpoint, for SDXL's two ResNets per block
SAME = {
    "down_blocks_1_attentions_0": "input_blocks_4_1",
    "down_blocks_1_attentions_1": "input_blocks_5_1",
    "down_blocks_2_attentions_1": "input_blocks_8_1",
    "mid_block_attentions_0": "middle_block_1",
    "up_blocks_0_attentions_1": "output_blocks_1_1",
    "up_blocks_1_attentions_2": "output_blocks_5_1",
}


def lora(blocks) -> dict:
    tensors = {}
    for block in blocks:
        key = f"lora_unet_{block}{LINEAR}"
        tensors |= {key + DOWN: torch.ones(2, 3), key + UP: torch.ones(4, 2), key + ALPHA: torch.tensor(1.0)}
    return tensors


def factors(weighed: dict) -> list[float]:
    return [round(tensor.mean().item(), 4) for name, tensor in weighed.items() if name.endswith(UP)]


@pytest.mark.parametrize("blocks", [SAME.keys(), SAME.values()], ids=["diffusers", "original"])
@pytest.mark.parametrize(
    ("text", "preset", "wanted"),
    [
        ("down 0.2, middle 0.5, up -0.8", ALIKE, [0.2, 0.2, 0.2, 0.5, -0.8, -0.8]),
        ("down_blocks.1=0.5; down.2 : 2\nMID_BLOCK 0", ALIKE, [0.5, 0.5, 2, 0, 1, 1]),
        ("down 0, down_blocks.1 0.3, down_blocks.1.attentions.1 = .7", ALIKE, [0.3, 0.7, 0, 1, 1, 1]),
        ("", "face only", [0.5, 0.5, 0, 1, 0.5, 1]),
        ("", "soft", [0.8, 0.8, 0.8, 1, 0.8, 0.5]),
        ("", "anti-artefact", [0.5, 0.5, 1, 1, 1, 0.3]),
        ("down 1", "face only", [1, 1, 1, 1, 0.5, 1]),
        ("up_blocks.1 0.9, middle 0.1", "anti-artefact", [0.5, 0.5, 1, 0.1, 1, 0.9]),
    ],
)
def test_weights_of_blocks(blocks, text, preset, wanted):
    before = lora(blocks)
    weighed = weigh_blocks(before, text, preset)
    assert factors(weighed) == wanted
    assert factors(before) == [1] * 6, "the LoRA that came in was changed"
    assert weighed.keys() == before.keys()
    assert all(torch.equal(weighed[name], before[name]) for name in before if not name.endswith(UP))


def test_nothing_to_change_is_the_same_lora():
    one = lora(SAME)
    assert weigh_blocks(one) is one
    assert weigh_blocks(one, " , ;\n") is one
    same = weigh_blocks(one, "down 1, up 1")
    assert all(same[name] is tensor for name, tensor in one.items())


def test_what_overflows_is_refused():
    half = {name: tensor.half() for name, tensor in lora(SAME).items()}
    with pytest.raises(HyperLoRAError, match=r"block weight 1e\+07 is too large for lora_unet_up_\w+ in torch.float16"):
        weigh_blocks(half, "up 1e7")


def test_precision_stays():
    half = {name: tensor.half() for name, tensor in lora(SAME).items()}
    assert weigh_blocks(half, "up 0.3")[f"lora_unet_up_blocks_0_attentions_1{LINEAR}{UP}"].dtype == torch.float16


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_for_any_layout(preset):
    """A pruned SDXL lacks blocks that a preset names."""
    weigh_blocks(lora(["up_blocks_0_attentions_1"]), preset=preset)
    assert all(math.isfinite(weight) for weight in parse_block_weights(PRESETS[preset]).values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dwon 1", ["'dwon'", "down 1, middle 1, up 0.8"]),
        ("down_blocks.x 1", ["'down_blocks.x'"]),
        ("up.0.resnets.1 1", ["'up.0.resnets.1'"]),
        ("down", ["'down'", "isn't a block and a number"]),
        ("0.5", ["'0.5'", "isn't a block and a number"]),
        ("down 1 2", ["'down 1 2'"]),
        ("down nan", ["'down nan'", "no number"]),
        ("up = inf", ["'up = inf'", "no number"]),
        ("up much", ["'up much'", "no number"]),
        ("up 1, UP_BLOCKS 0.5", ["up_blocks twice"]),
        ("down_blocks.0 0.5", ["no layers in down_blocks.0", "it has down_blocks.1, down_blocks.2, mid_block"]),
        ("up_blocks.10 0.5", ["no layers in up_blocks.10"]),
    ],
)
def test_what_is_no_block_weight(text, words):
    with pytest.raises(HyperLoRAError) as error:
        weigh_blocks(lora(SAME), text)
    assert_sentence(str(error.value), words)


def test_unknown_preset():
    with pytest.raises(HyperLoRAError) as error:
        weigh_blocks(lora(SAME), preset="hard")
    assert_sentence(str(error.value), ["'hard'", "anti-artefact"])
