"""What goes wrong in the graph is one sentence on the node, the same as in Python and on the command line."""

import io
import shutil

import numpy as np
import pytest
import torch
from bad_inputs import CHECKPOINTS, GOOD, assert_sentence, bad_checkpoint
from comfyui import RefusedError
from graphs import demo
from people import photo_of
from PIL import Image
from safetensors.torch import save_file

from hyperlora_core import Identity, load_hyperlora


@pytest.fixture(scope="session")
def models(server):
    """The host's models folder with every bad checkpoint, a good small one and its CLIP tower in it."""
    folder = server.base / "models"
    for name in CHECKPOINTS:
        bad_checkpoint(name, folder / "hyper_lora" / name.replace(" ", "_"))
    shutil.copytree(GOOD, folder / "hyper_lora" / "hyper_lora" / "small")  # the authors' old tree
    generator = torch.Generator().manual_seed(0)
    hyper = load_hyperlora(GOOD)
    coefficients = torch.nn.functional.normalize(torch.randn(48, 16, generator=generator), dim=-1)
    identities = folder / "hyper_lora_identities"
    Identity(coefficients, None, hyper.fingerprint, hyper.name).save(identities / "small_person.safetensors")
    save_file({"x": torch.zeros(1)}, identities / "no_identity.safetensors")
    return folder


def fails(server, graph: dict, *words: str) -> None:
    result = server.run(graph)
    assert result.error, "the workflow ran"
    assert_sentence(result.error, words)


def load_only(name: str) -> dict:
    return {
        "1": {"class_type": "HyperLoRALoadModel", "inputs": {"checkpoint": name, "precision": "auto"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if "json" not in n])
def test_bad_checkpoint(server, models, name):
    fails(server, load_only(name.replace(" ", "_")), *CHECKPOINTS[name].words)


def test_checkpoint_without_its_clip_tower(server, models, anna):
    graph = demo(anna, HyperLoRALoadModel={"checkpoint": "hyper_lora/small"})
    fails(server, graph, "No CLIP image tower with 32 channels", "download clip-vision")


def test_lora_for_another_model(server, models):
    """Core would log it and paint on without the person."""
    graph = with_identity("small_person.safetensors")
    graph["2"]["inputs"]["checkpoint"] = "hyper_lora/small"
    fails(server, graph, "doesn't fit this model", "needs an SDXL checkpoint")
    graph["7"]["inputs"] |= {"weight": 0, "base_weight": 0}
    fails(server, graph, "doesn't fit this model")


def test_lists_show_checkpoints_not_their_parts(server, models):
    spec = server.get("/object_info/HyperLoRALoadModel")["HyperLoRALoadModel"]["input"]["required"]["checkpoint"]
    options = spec[1].get("options") or spec[0]
    assert "hyper_lora/small" in options and options[-1] == "demo (shipped)"
    assert not [name for name in options if name.endswith((".safetensors", ".json"))]


def test_photos(server, anna):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    fails(server, demo(server.upload(noise, "noise.png")), "No face was found in Photo 1")
    fails(server, demo(server.upload(Image.new("RGB", (1, 300)), "thin.png")), "Photo 1", "1 x 300", "too small")
    fails(
        server,
        demo(anna, HyperLoRAEncodeIdentity={"face": "index", "face_index": 3}),
        "Face 3 doesn't exist",
        "Photo 1",
    )
    fails(server, demo(anna, HyperLoRAEncodeIdentity={"photo_weights": "1, 2"}), "don't fit 1 photo")
    fails(server, demo(anna, HyperLoRAEncodeIdentity={"photo_weights": "much"}), "aren't numbers")


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16", "P"])
def test_odd_photos_work(server, mode):
    """They pass through core's Load Image, which knows formats of its own."""
    photo = photo_of(0)
    grey = np.asarray(photo.convert("L")).astype(np.uint16)
    photo = Image.fromarray(grey * 257) if mode == "I;16" else photo.convert(mode)
    buffer = io.BytesIO()
    photo.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    result = server.run(demo(server.upload(buffer.getvalue(), f"odd_{mode.replace(';', '')}.png")))
    assert result.error is None, result.error


def test_several_photos_one_without_a_face(server, anna):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    graph = demo(anna)
    graph["20"] = {"class_type": "LoadImage", "inputs": {"image": server.upload(noise, "noise.png")}}
    graph["5"]["inputs"]["photos_3"] = ["20", 0]
    fails(server, graph, "No face was found in Photo 2")


def with_identity(name: str) -> dict:
    graph = demo("unused.png")
    for unused in ("3", "4", "5"):
        del graph[unused]
    graph["20"] = {"class_type": "HyperLoRALoadIdentity", "inputs": {"identity": name}}
    graph["6"]["inputs"]["identity"] = ["20", 0]
    return graph


def test_identity_of_another_checkpoint(server, models):
    fails(server, with_identity("small_person.safetensors"), "encoded with clip_arcface", "encode the photos again")
    fails(server, with_identity("no_identity.safetensors"), "no_identity.safetensors is not an identity")


def test_people_of_two_checkpoints(server, models, anna):
    graph = demo(anna)
    graph["20"] = {"class_type": "HyperLoRALoadIdentity", "inputs": {"identity": "small_person.safetensors"}}
    graph["21"] = {"class_type": "HyperLoRABlendIdentities", "inputs": {
        "identity_a": ["5", 0], "weight_a": 0.5, "identity_b": ["20", 0], "weight_b": 0.5}}  # fmt: skip
    graph["6"]["inputs"]["identity"] = ["21", 0]
    fails(server, graph, "different checkpoints")


def test_blend_weights_without_a_sum(server, anna):
    graph = demo(anna)
    graph["21"] = {"class_type": "HyperLoRABlendIdentities", "inputs": {
        "identity_a": ["5", 0], "weight_a": 0.5, "identity_b": ["5", 0], "weight_b": -0.5}}  # fmt: skip
    graph["6"]["inputs"]["identity"] = ["21", 0]
    fails(server, graph, "blend weights 0.5, -0.5")


@pytest.mark.parametrize("name", ["../../escaped", "people/", "people/..", " "])
def test_names_that_are_none(server, anna, name):
    """Those that climb out, and those of a folder, whose file no list would show."""
    graph = demo(anna)
    graph["20"] = {
        "class_type": "HyperLoRASaveIdentity",
        "inputs": {"identity": ["5", 0], "name": name, "overwrite": False},
    }
    fails(server, graph, f"{name!r} is not a name")


def test_something_else_on_the_face_wire(server):
    """FACEANALYSIS wires carry other packs' objects; a wrong type is the host's business."""
    graph = demo("unused.png")
    graph["5"]["inputs"]["face_analysis"] = ["1", 0]
    with pytest.raises(RefusedError, match="return_type_mismatch"):
        server.run(graph)


def test_missing_face_pack_is_named(server):
    graph = demo("unused.png", HyperLoRALoadFaceAnalysis={"face_pack": "antelopev2"})
    with pytest.raises(RefusedError, match="antelopev2"):
        server.run(graph)
