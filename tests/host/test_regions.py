"""Several people in one picture: side by side, together with schedules, block weights and other LoRAs, and bad input."""

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence
from comfyui import RefusedError
from crowds import SIDE, column, crowd, ids
from graphs import demo, nodes_of
from people import photo_of
from PIL import Image
from places import FIXTURES

from hyperlora_core import Identity, load_hyperlora

PROMPTS = ["portrait of a person, red shirt", "portrait of a person with glasses, blue shirt"]


@pytest.fixture(scope="session")
def two(server):
    """Two people's photos."""
    return [server.upload(photo_of(number), f"region_{number}.png") for number in (0, 1)]


@pytest.fixture(scope="session")
def halves(server):
    """The left and the right half; the right one in another size."""
    left, right = column(0, 2), column(1, 2).resize((640, 480))
    return [server.upload(mask.convert("RGB"), f"half_{side}.png") for side, mask in enumerate((left, right))]


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(int) - other).mean()


def without_people(graph: dict) -> dict:
    plain = {name: dict(node, inputs=dict(node["inputs"])) for name, node in graph.items()}
    plain["12"]["inputs"] |= {"positive": ["9", 0], "negative": ["10", 0]}
    return plain


def test_two_people_side_by_side(server, two, halves):
    graph = crowd(two, halves, PROMPTS)
    plain = server.run(without_people(graph)).picture()
    picture = server.run(graph).picture()
    assert picture.shape == (SIDE, 2 * SIDE, 3)
    assert difference(picture[:, :SIDE], plain[:, :SIDE]) > 1
    assert difference(picture[:, SIDE:], plain[:, SIDE:]) > 1
    swapped = server.run(crowd(two, halves[::-1], PROMPTS)).picture()
    assert difference(swapped, picture) > 1
    assert np.array_equal(server.run(graph | {"12": another_run(graph)}).picture(), picture)
    assert np.array_equal(
        server.run(without_people(graph) | {"12": another_run(without_people(graph))}).picture(), plain
    )


def another_run(graph: dict) -> dict:
    """The same sampler, but not out of the host's cache."""
    graph["12"]["inputs"]["denoise"] = 1.0 - 1e-9
    return graph["12"]


def test_a_person_on_the_left_leaves_the_right(server, two, halves):
    graph = crowd(two[:1], halves[:1], PROMPTS[:1], width=2 * SIDE)
    picture, plain = server.run(graph).picture(), server.run(without_people(graph)).picture()
    # through the layers' width a little of the person reaches the other side
    assert difference(picture[:, :SIDE], plain[:, :SIDE]) > 1.25 * difference(picture[:, SIDE:], plain[:, SIDE:])


def test_with_the_masks_box_in_view_a_person_is_painted_as_alone(server, two, halves):
    """Both halves are covered: each is the picture that the person's prompt makes of this half's noise."""
    regions = [{"set_cond_area": "mask bounds"}] * 2
    swapped, picture = (server.run(crowd(photos, halves, PROMPTS, regions)).picture() for photos in ([two[0]] * 2, two))
    left, right = (difference(picture[:, half], swapped[:, half]) for half in (np.s_[: SIDE - 32], np.s_[SIDE:]))
    assert right > 1 and left < 0.1 * right, "who is on the right changes the left by no more than decoding does"
    assert difference(server.run(crowd(two, halves, PROMPTS)).picture(), picture) > 1


def test_everywhere_equals_apply(server, two):
    graph = crowd(two[:1], None, PROMPTS[:1])
    del graph[ids(0)["region"]]["inputs"]["person_prompt"]
    region = server.run(graph).picture()
    graph["7"] = demo("")["7"]
    generate = ids(0)["generate"]
    graph["7"]["inputs"] |= {"id_lora": [generate, 0], "base_lora": [generate, 1], "weight": 0.8, "base_weight": 0.0}
    graph["12"]["inputs"] |= {"model": ["7", 0], "positive": ["9", 0], "negative": ["10", 0]}
    applied = server.run(graph).picture()
    assert difference(region, applied) < 0.5


def test_three_people_in_a_batch(server, two):
    photos = [*two, server.upload(photo_of(2), "region_2.png")]
    masks = [server.upload(column(number, 3).convert("RGB"), f"third_{number}.png") for number in range(3)]
    pictures = server.run(crowd(photos, masks, [PROMPTS[0]] * 3, batch=2)).pictures()
    assert [picture.shape for picture in pictures] == [(SIDE, 3 * SIDE, 3)] * 2
    assert difference(*pictures) > 1


def test_two_chains_combined_by_core(server, two, halves):
    """Each person on a prompt of their own, joined by core's node instead of one after another."""
    graph = crowd(two, halves, PROMPTS)
    second = graph[ids(1)["region"]]["inputs"]
    second |= {"positive": ["9", 0], "negative": ["10", 0]}
    for number, side in enumerate(("positive", "negative")):
        graph[str(200 + number)] = {
            "class_type": "ConditioningCombine",
            "inputs": {
                "conditioning_1": [ids(0)["region"], number],
                "conditioning_2": [ids(1)["region"], number],
            },
        }
        graph["12"]["inputs"][side] = [str(200 + number), 0]
    assert difference(server.run(graph).picture(), server.run(crowd(two, halves, PROMPTS)).picture()) < 0.5


def test_everything_in_one_graph(server, two, halves):
    """Regions with times and block weights; on the model a LoRA merged for a while and one beside it for a while."""
    regions = [
        {"start": 0.2, "blocks": "soft", "base_weight": 0.4},
        {"end": 0.9, "block_weights": "up 0.5, up_blocks.0 = 0.8"},
    ]
    graph = crowd(two, halves, PROMPTS, regions, batch=2)
    direction = [ids(0)["generate"], 0]
    merged = {"model": ["1", 0], "id_lora": direction, "weight": -0.3, "start": 0.1, "end": 0.7}
    graph["300"] = {"class_type": "HyperLoRAApply", "inputs": merged}
    beside = {
        "model": ["300", 0],
        "id_lora": direction,
        "weight": 0.3,
        "mode": "bypass",
        "start": 0.5,
        "blocks": "face only",
    }
    graph["301"] = {"class_type": "HyperLoRAApply", "inputs": beside}
    graph["12"]["inputs"]["model"] = ["301", 0]
    everything = server.run(graph).pictures()
    assert len(everything) == 2
    for node, name, value in (
        ("300", "start", 0.4),
        ("301", "weight", 0.6),
        ("301", "blocks", "all alike"),
        (ids(0)["region"], "start", 0.5),
        (ids(1)["region"], "block_weights", ""),
    ):
        before = graph[node]["inputs"][name]
        graph[node]["inputs"][name] = value
        assert not np.array_equal(server.run(graph).picture(), everything[0]), f"{name} of {node} does nothing"
        graph[node]["inputs"][name] = before
    graph["12"] = another_run(graph)
    again = server.run(graph).pictures()
    assert all(np.array_equal(one, other) for one, other in zip(again, everything, strict=True))


def test_regions_schedules_a_slider_and_a_controlnet(server, two, halves):
    """Two people in their places from a start on, a slider on the model, and a ControlNet before the Regions."""
    graph = crowd(two, halves, PROMPTS, [{"start": 0.2}, {"end": 0.8}])
    graph |= {
        "300": {"class_type": "TinyControlNet", "inputs": {"model": ["1", 0]}},
        "301": {
            "class_type": "ControlNetApplyAdvanced",
            "inputs": {
                "positive": ["9", 0],
                "negative": ["10", 0],
                "control_net": ["300", 0],
                "image": [ids(0)["photo"], 0],
                "strength": 1.0,
                "start_percent": 0.0,
                "end_percent": 1.0,
            },
        },
        "302": {
            "class_type": "HyperLoRASlider",
            "inputs": {
                "hyperlora": ["2", 0],
                "identity_from": [ids(0)["encode"], 0],
                "identity_to": [ids(1)["encode"], 0],
                "amount": 0.5,
            },
        },
        "303": {
            "class_type": "HyperLoRAApply",
            "inputs": {"model": ["1", 0], "id_lora": ["302", 0], "weight": 1.0, "mode": "bypass", "start": 0.3},
        },
    }
    # for the positive prompt alone: the negative one would show a ControlNet that people with prompts of their own lost
    graph[ids(0)["region"]]["inputs"]["positive"] = ["301", 0]
    graph["12"]["inputs"]["model"] = ["303", 0]
    everything = server.run(graph).picture()
    for node, name, value in (
        ("301", "strength", 0.0),
        ("302", "amount", -0.5),
        ("303", "start", 0.7),
        (ids(0)["region"], "start", 0.5),
        (ids(1)["region"], "end", 0.5),
    ):
        before = graph[node]["inputs"][name]
        graph[node]["inputs"][name] = value
        changed = server.run(graph).picture()
        sides = [difference(changed[:, half], everything[:, half]) for half in (np.s_[:SIDE], np.s_[SIDE:])]
        assert max(sides) > 0.1, f"{name} of {node} does nothing"
        if name == "strength":
            assert min(sides) > 1, "the ControlNet holds for both people, who have prompts of their own"
        graph[node]["inputs"][name] = before
    graph["12"] = another_run(graph)
    assert np.array_equal(server.run(graph).picture(), everything)


def fails(server, graph: dict, *words: str) -> None:
    result = server.run(graph)
    assert result.error, "the workflow ran"
    assert_sentence(result.error, words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"start": 0.5, "end": 0.5}, ("from 0.5 to 0.5", "before the end")),
        ({"block_weights": "dwon 1"}, ("'dwon'", "down 1, middle 1")),
        ({"block_weights": "down_blocks.0 1"}, ("no layers in down_blocks.0",)),
        ({"block_weights": "up nan"}, ("'up nan'", "no number")),
        ({"weight": float("nan")}, ("weight",)),
    ],
)
def test_bad_values(server, two, halves, more, words):
    fails(server, crowd(two[:1], halves[:1], PROMPTS[:1], [more], width=2 * SIDE), *words)
    graph = demo(two[0])
    graph["7"]["inputs"] |= more
    fails(server, graph, *words)


def test_a_region_without_a_person_is_refused(server, two, halves):
    graph = crowd(two[:1], halves[:1], PROMPTS[:1], width=2 * SIDE)
    (region,) = nodes_of(graph, "HyperLoRARegion")
    del graph[region]["inputs"]["id_lora"]
    with pytest.raises(RefusedError) as refused:
        server.post("/prompt", {"prompt": graph})
    (problem,) = refused.value.answer["node_errors"][region]["errors"]
    assert (problem["type"], problem["extra_info"]["input_name"]) == ("required_input_missing", "id_lora")


def test_bad_masks(server, two, halves):
    nowhere = crowd(two[:1], None, PROMPTS[:1], [{"set_cond_area": "mask bounds"}])
    fails(server, nowhere, "set_cond_area is mask bounds", "no mask")
    empty = server.upload(Image.new("RGB", (64, 64)), "empty_mask.png")
    fails(server, crowd(two, [halves[0], empty], PROMPTS), "covers 0.00%", "paint the place white")
    fails(server, crowd(two, [halves[0], halves[0]], PROMPTS), "100% on another person's", "Blend Identities")


def test_a_schedule_begins_anew_in_each_run(server, two, halves):
    """One step at the noise at which the last run ended: core alone would go on from there, before the start."""
    graph = crowd(two[:1], halves[:1], PROMPTS[:1], [{"start": 0.2}], width=2 * SIDE, steps=1, denoise=0.5)
    for seed in (1, 2):  # the Region itself comes from the host's cache in the second
        graph["12"]["inputs"]["seed"] = seed
        picture, without = server.run(graph).picture(), server.run(without_people(graph)).picture()
        assert difference(picture[:, :SIDE], without[:, :SIDE]) > 0.5, seed


def test_a_mask_for_each_picture(server, two, halves):
    """The person is on the left of the first picture and on the right of the second."""

    def masked(batch: int) -> dict:
        graph = crowd(two[:1], halves[:1], PROMPTS[:1], width=2 * SIDE, batch=batch)
        for i, half in enumerate(halves):
            graph[f"50{i}"] = {"class_type": "LoadImage", "inputs": {"image": half}}
        graph["502"] = {"class_type": "ImageBatch", "inputs": {"image1": ["500", 0], "image2": ["501", 0]}}
        graph[ids(0)["mask"]] = {"class_type": "ImageToMask", "inputs": {"image": ["502", 0], "channel": "red"}}
        return graph

    graph = masked(2)
    painted, plain = server.run(graph).pictures(), server.run(without_people(graph)).pictures()
    for picture, without, (own, other) in zip(painted, plain, ((0, SIDE), (SIDE, 0)), strict=True):
        changed = [difference(picture[:, x : x + SIDE], without[:, x : x + SIDE]) for x in (own, other)]
        assert changed[0] > 1.3 * changed[1]
    for pictures in (1, 3):
        fails(server, masked(pictures), "2 masks", f"{pictures} picture", "as many masks as pictures")


def test_a_person_for_another_model(server, two, halves):
    """Seen by the sampler, which is the first to know the model; core would paint on without the person."""
    hyper = load_hyperlora(FIXTURES / "with_base")
    shape = 8 * len(hyper.module_names), hyper.basis.size
    coefficients = torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    folder = server.base / "models" / "hyper_lora_identities"
    Identity(coefficients, None, hyper.fingerprint, hyper.name).save(folder / "stranger.safetensors")
    graph = crowd(two, halves, PROMPTS)
    graph["400"] = {
        "class_type": "HyperLoRALoadModel",
        "inputs": {"checkpoint": "small_elsewhere", "precision": "auto"},
    }
    graph["401"] = {"class_type": "HyperLoRALoadIdentity", "inputs": {"identity": "stranger.safetensors"}}
    graph[ids(1)["generate"]]["inputs"] = {"hyperlora": ["400", 0], "identity": ["401", 0]}
    del graph[ids(1)["region"]]["inputs"]["base_lora"]
    fails(server, graph, "doesn't fit this model", "needs an SDXL checkpoint")
    plain = without_people(graph)
    assert server.run(plain).error is None, "the failed run left something behind"
