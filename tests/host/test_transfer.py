"""LoRAs moved to another base, in a real host: the weights that it reads, and the picture that comes of it."""

import re

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence
from graphs import demo
from people import photo_of
from places import FIXTURES
from torch.nn.functional import normalize

from hyperlora_core import Identity, load_hyperlora
from hyperlora_core.basis import VECTORS_PER_MODULE

PERSON = {"weight": 0.8, "base_weight": 0}


@pytest.fixture(scope="session")
def plain(server, anna):
    return server.run(demo(anna, HyperLoRAApply=PERSON)).picture().astype(int)


def moved(photo: str, directions: float, threshold: float = 0.5, tuned_by: float = 0.0) -> dict:
    """Anna's LoRA moved from the demo model to itself, or to it with her base LoRA merged in as its fine-tuning."""
    graph = demo(photo, HyperLoRAApply=PERSON)
    target = ["1", 0]
    if tuned_by:
        tuning = {"model": ["1", 0], "id_lora": ["6", 1], "weight": tuned_by, "mode": "merge"}
        graph["21"] = {"class_type": "HyperLoRAApply", "inputs": tuning}
        target = ["21", 0]
    graph["20"] = {
        "class_type": "HyperLoRATransfer",
        "inputs": {
            "lora": ["6", 0], "source": ["1", 0], "target": target, "threshold": threshold, "directions": directions,
        },
    }  # fmt: skip
    graph["7"]["inputs"] |= {"id_lora": ["20", 0], "model": target}
    graph["30"] = {"class_type": "PreviewAny", "inputs": {"source": ["20", 1]}}
    return graph


def similarities(report: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S+): .*?similarity ([\d.]+)", report, re.MULTILINE))


def test_to_the_same_model(server, anna, plain):
    whole = server.run(moved(anna, 1.0))
    assert set(similarities(whole.text("30")).values()) == {"1.00"}
    assert "88 of 88 layers" in whole.text("20")
    half = server.run(moved(anna, 0.5))
    off = [np.abs(result.picture("14").astype(int) - plain).mean() for result in (whole, half)]
    assert off[0] < off[1], "all directions change the picture more than half of them"


def test_patches_of_the_target_count(server, anna):
    """The weights as the MODEL on the wire has them, whatever the host has put into them for the last picture."""
    first = similarities(server.run(moved(anna, 0.9, tuned_by=2.0)).text("30"))
    assert len(first) == 88 and min(map(float, first.values())) < 0.995
    server.run(demo(anna, HyperLoRAApply={"weight": 2.0, "base_weight": 2.0}, KSampler={"seed": 5})).picture()
    again = similarities(server.run(moved(anna, 0.8, tuned_by=2.0)).text("30"))  # other directions: read anew
    assert again == first


def test_the_threshold_leaves_layers_out(server, anna):
    text = server.run(moved(anna, 0.9, tuned_by=2.0)).text("30")
    values = sorted(float(value) for value in similarities(text).values())
    threshold = round((values[0] + values[-1]) / 2, 3)
    result = server.run(moved(anna, 0.9, threshold, tuned_by=2.0))
    assert f"is below {threshold:.2f}" in result.text("30") and result.picture("14").any()
    assert result.text("30").count("left out") >= 1


def test_two_people_between_the_same_models(server, anna, plain):
    ben = server.upload(photo_of(1), "ben.png")
    pictures = [server.run(moved(photo, 0.75)).picture("14").astype(int) for photo in (anna, ben, anna)]
    assert np.abs(pictures[0] - pictures[1]).mean() > 0.3
    assert np.array_equal(pictures[0], pictures[2])


def test_models_that_are_not_alike(server, anna):
    result = server.run(moved(anna, 0.5, threshold=1.0, tuned_by=2.0))
    assert_sentence(result.error, ("No layer of the two models is alike enough", "threshold 1.00"))


def test_lora_for_another_base(server):
    hyper = load_hyperlora(FIXTURES / "with_base")
    size = VECTORS_PER_MODULE * len(hyper.module_names), hyper.basis.size
    coefficients = normalize(torch.randn(size, generator=torch.Generator().manual_seed(0)), dim=-1)
    person = Identity(coefficients, None, hyper.fingerprint, hyper.name)
    person.save(server.base / "models" / "hyper_lora_identities" / "of_another_base.safetensors")
    graph = moved("unused.png", 0.5)
    for unused in ("3", "4", "5"):
        del graph[unused]
    graph["2"]["inputs"]["checkpoint"] = "small_elsewhere"
    graph["5"] = {"class_type": "HyperLoRALoadIdentity", "inputs": {"identity": "of_another_base.safetensors"}}
    assert_sentence(server.run(graph).error, ("doesn't fit the source model", "needs an SDXL checkpoint"))
