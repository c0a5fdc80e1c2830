"""LoRAs moved to another base, on small random matrices."""

import pytest
import torch
from bad_inputs import assert_sentence
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hyperlora_core import HyperLoRAError, load_lora, save_lora
from hyperlora_core.base_layers import LAYOUTS, FileLayers, TensorLayers, depths, layout_name
from hyperlora_core.cli import main
from hyperlora_core.lora import pairs
from hyperlora_core.pruned import in_order, match_blocks
from hyperlora_core.subspace import SMALL, leading, overlap
from hyperlora_core.transfer import COMPARED, Bridge, transfer

ONE_BLOCK = {"mid_block": (1,)}
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
WIDTH, CONTEXT, RANK = 24, 16, 3


def unet(layout: dict, seed: int = 0, width: int = WIDTH, context: int = CONTEXT) -> dict[str, torch.Tensor]:
    """The attention weights of a UNet with random weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{level}.attentions.{stack}.transformer_blocks.{block}.{attention}.{linear}.weight": torch.randn(
            width, context if attention == "attn2" and linear in ("to_k", "to_v") else width, generator=generator
        )
        for level, stacks in layout.items()
        for stack, depth in enumerate(stacks)
        for block in range(depth)
        for attention in ("attn1", "attn2")
        for linear in ("to_q", "to_k", "to_v", "to_out.0")
    }


def lora_of(tensors: dict[str, torch.Tensor], seed: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, weight in tensors.items():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        lora[f"{key}.lora_down.weight"] = torch.randn(RANK, weight.shape[1], generator=generator)
        lora[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], RANK, generator=generator)
        lora[f"{key}.alpha"] = torch.tensor(RANK / 2)
    return lora


def changes(lora: dict) -> dict[str, torch.Tensor]:
    return {pair.key: pair.scale * pair.up @ pair.down for pair in pairs(lora)}


def near(one: torch.Tensor, two: torch.Tensor) -> bool:
    """As near as a bridge's half precision."""
    return bool((one - two).norm() <= 5e-3 * two.norm())


class Counted(TensorLayers):
    read = 0

    def weight(self, path: str) -> torch.Tensor:
        self.read += 1
        return super().weight(path)


# singular vectors


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (24, 24)])
def test_leading_vectors(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    _, values, _ = torch.linalg.svd(weight)
    left, right = leading(weight, 5)
    assert left.shape == (shape[0], 5) and right.shape == (shape[1], 5)
    assert torch.allclose(left.T @ weight @ right, values[:5].diag(), atol=1e-4)


def test_estimated_vectors_of_a_large_weight():
    side = SMALL + 44
    values = 0.8 ** torch.arange(side)
    bases = [torch.linalg.qr(torch.randn(side, side, generator=torch.Generator().manual_seed(n))).Q for n in (1, 2)]
    found = leading(bases[0] * values @ bases[1].T, 8)
    assert overlap(found.left, bases[0][:, :8]) > 0.999 and overlap(found.right, bases[1][:, :8]) > 0.999


def test_overlap():
    basis = torch.eye(10)
    assert overlap(basis[:, :4], basis[:, :4]) == 1 and overlap(basis[:, :4], basis[:, 4:8]) == 0
    assert overlap(basis[:, :4], basis[:, 2:6]) == 0.5


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


def test_all_directions_of_a_square_layer_change_nothing():
    before = unet(ONE_BLOCK)
    lora = lora_of(before)
    moved = transfer(lora, TensorLayers(before), TensorLayers(unet(ONE_BLOCK, 1)), 0, Bridge(1.0))
    square = [key for key, change in changes(lora).items() if change.shape[0] == change.shape[1]]
    assert len(square) == 6
    assert all(torch.allclose(changes(moved.lora)[key], changes(lora)[key], atol=1e-5) for key in square)


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


# pruned models

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
    "KOALA-700M": {
        "down_blocks.1": {1: (0, 1)},
        "down_blocks.2": {0: (0, 2, 4, 6, 8)},
        "up_blocks.0": {0: (0, 1, 2, 3, 4), 2: (5, 6, 7, 8, 9)},
        "up_blocks.1": {0: (0, 1), 1: (0, 1)},
    },
}


def pruned(tensors: dict, kept: dict, noise: float = 0.3) -> tuple[dict, dict[str, str]]:
    """What is left, numbered anew and trained on a little; and source block -> its block there."""
    generator = torch.Generator().manual_seed(3)
    left, blocks = {}, {}
    for level, stacks in kept.items():
        for stack, (old_stack, numbers) in enumerate(stacks.items()):
            for block, number in enumerate(numbers):
                old = f"{level}.attentions.{old_stack}.transformer_blocks.{number}"
                blocks[old] = f"{level}.attentions.{stack}.transformer_blocks.{block}"
                for name, weight in tensors.items():
                    if name.startswith(f"{old}."):
                        drift = noise * torch.randn(weight.shape, generator=generator)
                        left[name.replace(old, blocks[old])] = weight + drift
    return left, blocks


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


def test_in_order():
    scores = torch.tensor([[0.1, 0.9, 0.2], [0.9, 0.8, 0.3]])
    assert in_order(scores) == [(0, 1), (1, 2)]  # the largest of each row would cross
    assert in_order(scores.T) == [(1, 0), (2, 1)]


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

    with pytest.raises(HyperLoRAError, match="unquantised"):
        transfer(lora_of(GOOD), TensorLayers(GOOD), Packed(GOOD))


# checkpoints and the command line

DEMO_UNET = ROOT / "models" / "demo" / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
ORIGINAL = {"down_blocks.1.attentions.0": "input_blocks.4.1", "mid_block.attentions.0": "middle_block.1",
            "up_blocks.0.attentions.2": "output_blocks.2.1", "up_blocks.1.attentions.1": "output_blocks.4.1"}  # fmt: skip


def test_layers_of_files(tmp_path):
    tensors = load_file(DEMO_UNET)
    layers = FileLayers(ROOT / "models" / "demo")
    assert layers.shapes == TensorLayers(tensors).shapes and len(layers.shapes) == 88
    path = "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0"
    assert torch.equal(layers.weight(path), tensors[f"{path}.weight"])
    # as in an original checkpoint of three levels with two ResNets each
    renamed = {
        "model.diffusion_model.input_blocks.8.0.x": torch.zeros(1),
        "cond_stage.attn1.to_q.weight": torch.zeros(1),
    }
    for name, tensor in tensors.items():
        for new, old in ORIGINAL.items():
            if name.startswith(f"{new}.transformer_blocks"):
                renamed[f"model.diffusion_model.{name.replace(new, old)}"] = tensor
    save_file(renamed, tmp_path / "model.safetensors")
    original = FileLayers(tmp_path / "model.safetensors")
    assert depths(original) == {
        "down_blocks.1": {0: 1},
        "mid_block": {0: 1},
        "up_blocks.0": {2: 1},
        "up_blocks.1": {1: 1},
    }
    assert torch.equal(original.weight(path), tensors[f"{path}.weight"])


def test_files_that_are_no_base(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    for path, words in (
        (tmp_path / "x.safetensors", "holds no attention layers"),
        (tmp_path, "holds no diffusers UNet"),
        (tmp_path / "none.safetensors", "There is no file"),
    ):
        with pytest.raises(HyperLoRAError, match=words):
            FileLayers(path)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two checkpoints of one block, and a LoRA for the first."""
    folder = tmp_path_factory.mktemp("bases")
    before = unet(ONE_BLOCK, 0, 64, 64)
    noise = unet(ONE_BLOCK, 1, 64, 64)
    save_file(before, folder / "source.safetensors")
    save_file({name: tensor + 0.1 * noise[name] for name, tensor in before.items()}, folder / "tuned.safetensors")
    for number in (1, 2):
        save_lora(
            lora_of(before, number), folder / f"person_{number}.safetensors", metadata={"hyperlora.name": str(number)}
        )
    return folder


def test_command(bases, tmp_path, capsys):
    loras = [str(bases / f"person_{number}.safetensors") for number in (1, 2)]
    models = ["--source", str(bases / "source.safetensors"), "--target", str(bases / "tuned.safetensors")]
    report = tmp_path / "report.txt"
    assert main(["transfer", *loras, *models, "-o", str(tmp_path / "out"), "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert said.count("8 of 8 layers moved") == 2 and f"Report: {report}" in said
    for number in (1, 2):
        moved = load_lora(tmp_path / "out" / f"person_{number}.safetensors")
        wanted = transfer(
            load_lora(loras[number - 1]), *(FileLayers(bases / f"{name}.safetensors") for name in ("source", "tuned"))
        )
        assert all(torch.equal(moved[name], tensor) for name, tensor in wanted.lora.items())
        with safe_open(tmp_path / "out" / f"person_{number}.safetensors", framework="pt") as file:
            metadata = file.metadata()
        assert (metadata["hyperlora.name"], metadata["hyperlora.moved_to"]) == (str(number), "tuned.safetensors")
    assert report.read_text().count("similarity") == 2 * (1 + 8)


def test_command_with_mistakes(bases, tmp_path, capsys):
    lora, out = str(bases / "person_1.safetensors"), str(tmp_path / "out.safetensors")
    models = ["--source", str(bases / "source.safetensors"), "--target", str(bases / "tuned.safetensors")]
    for arguments, words in (
        ([lora, *models, "-o", out, "--threshold", "nan"], ("nan isn't a threshold",)),
        ([lora, *models, "-o", out, "--directions", "0"], ("isn't a share",)),
        ([lora, lora, *models, "-o", out], ("2 LoRAs don't go into one file",)),
        ([lora, *models, "-o", str(bases)], ("the same file",)),
        ([lora, "--source", str(tmp_path / "no"), *models[2:], "-o", out], ("There is no file",)),
        ([lora, "--source", str(ROOT / "models" / "demo"), *models[2:], "-o", out], ("doesn't fit the source model",)),
    ):
        assert main(["transfer", *arguments]) == 2, arguments
        assert_sentence(capsys.readouterr().err, ("hyperlora transfer:", *words))
    assert not (tmp_path / "out.safetensors").exists()
