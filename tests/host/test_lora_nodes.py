"""Our LoRAs in core's nodes, and in files."""

from pathlib import Path

import numpy as np
import pytest
from graphs import demo, nodes_of
from people import photo_of

WEIGHT = 0.8


@pytest.fixture(scope="session")
def anna(server):
    return server.upload(photo_of(0), "anna.png")


@pytest.fixture(scope="session")
def applied(server, anna):
    """The picture with the ID LoRA through our own Apply."""
    return server.run(demo(anna, HyperLoRAApply={"weight": WEIGHT, "base_weight": 0})).picture()


def sampled_from(chain: dict, source: list) -> dict:
    """The same with another MODEL on the sampler."""
    (sampler,) = nodes_of(chain, "KSampler")
    chain[sampler]["inputs"]["model"] = source
    return chain


def test_core_load_lora_model_takes_ours(server, anna, applied):
    chain = demo(anna)
    chain["20"] = {
        "class_type": "LoraModelLoader",
        "inputs": {"model": ["1", 0], "lora": ["6", 0], "strength_model": WEIGHT, "bypass": False},
    }
    assert np.array_equal(server.run(sampled_from(chain, ["20", 0])).picture(), applied)


def load_file(chain: dict, name: str) -> dict:
    chain["20"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": name, "strength_model": WEIGHT},
    }
    return sampled_from(chain, ["20", 0])


def newest(server, pattern: str) -> str:
    folder = server.base / "output" / "loras"
    return max(folder.glob(pattern), key=lambda file: file.stat().st_mtime).name


def test_core_save_lora_weights_takes_ours(server, anna, applied):
    chain = demo(anna)
    save = {"lora": ["6", 0], "prefix": "loras/by_core", "steps": 0}
    chain["20"] = {"class_type": "SaveLoRA", "inputs": save}
    assert server.run(chain).error is None
    again = server.run(load_file(demo(anna), newest(server, "by_core*.safetensors")))
    assert np.array_equal(again.picture(), applied)


def test_our_file_in_core_load_lora_gives_the_same_picture(server, anna, applied):
    chain = demo(anna)
    chain["20"] = {
        "class_type": "HyperLoRASaveLoRA",
        "inputs": {
            "id_lora": ["6", 0], "filename_prefix": "loras/by_us", "naming": "kohya", "base_weight": 0.4, "identity": ["5", 0],
        },
    }  # fmt: skip
    result = server.run(chain)
    assert result.error is None
    assert "by_us" in result.outputs["20"]["text"][0]
    again = server.run(load_file(demo(anna), newest(server, "by_us*.safetensors")))
    assert np.array_equal(again.picture(), applied)


def test_joined_file_equals_both(server, anna):
    both = server.run(demo(anna, HyperLoRAApply={"weight": WEIGHT, "base_weight": 0.4})).picture().astype(int)
    chain = demo(anna)
    chain["20"] = {
        "class_type": "HyperLoRASaveLoRA",
        "inputs": {
            # the file is loaded at WEIGHT, and with it the base branch that was joined in
            "id_lora": ["6", 0], "base_lora": ["6", 1], "base_weight": 0.4 / WEIGHT,
            "filename_prefix": "loras/joined", "naming": "kohya",
        },
    }  # fmt: skip
    assert server.run(chain).error is None
    again = server.run(load_file(demo(anna), newest(server, "joined*.safetensors"))).picture()
    assert np.abs(again - both).max() <= 2


def test_files_are_whole(server):
    leftovers = [path for path in Path(server.base / "output").rglob("*") if path.name.endswith(".part")]
    assert not leftovers
