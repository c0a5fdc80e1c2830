"""Our LoRAs in core's nodes, and in files."""

import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from graphs import demo, nodes_of
from people import photo_of
from PIL import Image
from safetensors import safe_open

WEIGHT = 0.8


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


def test_preview_and_rank(server, anna, applied):
    chain = demo(anna)
    chain["20"] = {
        "class_type": "HyperLoRASaveLoRA",
        "inputs": {
            "id_lora": ["6", 0], "base_lora": ["6", 1], "base_weight": 0.4, "filename_prefix": "loras/small", "rank": 6,
            "preview": ["4", 0],
        },
    }  # fmt: skip
    result = server.run(chain)
    assert "Rank 6: " in "".join(result.outputs["20"]["text"])
    file = server.base / "output" / "loras" / newest(server, "small*.safetensors")
    with Image.open(file.with_suffix(".png")) as preview:
        assert np.array_equal(np.asarray(preview), np.asarray(photo_of(0)))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert metadata["ss_network_dim"] == "6" and metadata["modelspec.trigger_phrase"]
    assert not np.array_equal(server.run(load_file(demo(anna), file.name)).picture(), applied)
    # as ComfyUI's own model browser asks for it
    url = f"{server.url}/api/experiment/models/preview/loras/{folder_index(server)}/{file.name}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        assert Image.open(io.BytesIO(answer.read())).size == (256, 256)


def folder_index(server) -> int:
    """Which of the host's LoRA folders is the one below output."""
    (loras,) = (one for one in server.get("/api/experiment/models") if one["name"] == "loras")
    return next(i for i, path in enumerate(loras["folders"]) if Path(path) == server.base / "output" / "loras")


def test_kept_norms_are_gentler(server, anna, applied):
    off = server.run(demo(anna, HyperLoRAApply={"weight": 0, "base_weight": 0})).picture().astype(int)
    kept = server.run(demo(anna, HyperLoRAApply={"weight": WEIGHT, "base_weight": 0, "keep_norms": True})).picture()
    assert not np.array_equal(kept, applied)
    # the person comes all the same: nearer to the merged picture than to the one without
    assert np.abs(kept - applied.astype(int)).mean() < np.abs(kept - off).mean()


def test_kept_norms_need_merge(server, anna):
    result = server.run(demo(anna, HyperLoRAApply={"keep_norms": True, "mode": "bypass"}))
    assert "keep_norms needs the model's weights" in result.error
    result = server.run(demo(anna, HyperLoRAApply={"keep_norms": True, "start": 0.3}))
    assert "keep_norms holds for all of sampling" in result.error


def test_files_are_whole(server):
    leftovers = [path for path in Path(server.base / "output").rglob("*") if path.name.endswith(".part")]
    assert not leftovers
