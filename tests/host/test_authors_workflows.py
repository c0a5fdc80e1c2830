"""Workflows of the authors' pack in a real ComfyUI, on the demo's models: accepted, and the same pictures as ours."""

import copy

import numpy as np
import pytest
from authors_workflows import AUTHORS, STRANGERS, WORKFLOWS, api
from comfyui import ComfyUI, RefusedError
from graphs import demo, read
from people import photo_of

SHIPPED = "demo (shipped)"
SAMPLER = {"seed": 1, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
PROMPT = read("api/demo.json")["8"]["inputs"]["prompt"]


@pytest.fixture(scope="session")
def photos(server):
    names = {
        "photo.png": photo_of(0),
        "photo_2.png": photo_of(0, 3),
        "with.png": photo_of(1),
        "without.png": photo_of(1, 4),
    }
    return {name: server.upload(picture, f"authors_{name}") for name, picture in names.items()}


def on_demo(name: str, photos: dict) -> dict:
    """The workflow with the demo's files instead of those that it was saved with, and a few steps at 128 x 128."""
    workflow = copy.deepcopy(api(name))
    negative = next(n["inputs"]["negative"][0] for n in workflow.values() if n["class_type"] == "KSampler")
    for number, node in workflow.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            node |= {"class_type": "HyperLoRALoadDemo", "inputs": {}}
        elif kind == "LoadImage":
            inputs["image"] = photos[inputs["image"]]
        elif kind == "EmptyLatentImage":
            inputs |= {"width": 128, "height": 128}
        elif kind == "KSampler":
            inputs |= SAMPLER
        elif kind == "CLIPTextEncode":
            inputs["text"] = "" if number == negative else f"fcsks fxhks fhyks, {PROMPT}"
        for widget, value in (("model", SHIPPED), ("face_analyzer", SHIPPED), ("dtype", "fp32")):
            if kind in AUTHORS and isinstance(inputs.get(widget), str):
                inputs[widget] = value
    return workflow


def test_signatures(server):
    known = server.get("/object_info")
    for name, kind in AUTHORS.items():
        order = [label for group in known[name]["input_order"].values() for label in group]
        assert {*kind.sockets, *kind.widgets} <= set(order)
        if name != "HyperLoRASaveLoRA":
            assert known[name]["deprecated"] and known[name]["output"] == kind.outputs
            assert [label for label in order if label in kind.widgets] == kind.widgets


@pytest.mark.parametrize(("name", "weight"), [("text_to_image", 0.9), ("uni", 0.85)])
def test_same_picture_as_ours(server, photos, name, weight):
    ours = demo(photos["photo.png"], HyperLoRAApply={"weight": weight, "base_weight": 0}, KSampler=SAMPLER)
    theirs = server.run(on_demo(name, photos))
    (save,) = (number for number, node in on_demo(name, photos).items() if node["class_type"] == "SaveImage")
    assert np.array_equal(theirs.picture(save), server.run(ours).picture())


def test_slider_changes_the_picture(server, photos):
    assert not np.array_equal(
        server.run(on_demo("slider", photos)).picture(), server.run(on_demo("uni", photos)).picture()
    )


def test_base_branch_and_file(server, photos):
    workflow = on_demo("base_and_save", photos)
    (file,) = (number for number, node in workflow.items() if node["class_type"] == "HyperLoRASaveLoRA")
    result = server.run(workflow)
    assert result.error is None, result.error
    assert "loras/HyperLoRA" in "".join(result.outputs[file]["text"]).replace("\\", "/")
    plain = server.run(on_demo("text_to_image", photos))
    saves = [number for number, node in workflow.items() if node["class_type"] == "SaveImage"]
    assert result.picture(saves[0]).shape == (128, 128, 3)
    assert plain.error is None


@pytest.mark.parametrize(
    "name", [n for n, nodes in WORKFLOWS.items() if any(k.kind in STRANGERS for k in nodes.values())]
)
def test_only_other_packs_are_missing(server, photos, name):
    with pytest.raises(RefusedError) as refused:
        server.post("/prompt", {"prompt": on_demo(name, photos)})
    missing = refused.value.answer["error"]
    assert missing["type"] == "missing_node_type"
    assert any(kind in str(missing) for kind in STRANGERS), missing


def test_weights_that_are_not_there_are_named(server, photos):
    workflow = on_demo("uni", photos)
    for node in workflow.values():
        if node["class_type"] == "HyperLoRAUniLoader":
            node["inputs"]["model"] = "sdxl_hyper_id_lora_v1_fidelity"
    with pytest.raises(RefusedError, match="sdxl_hyper_id_lora_v1_fidelity"):
        server.run(workflow)


THEIRS = """
class Loader:
    CATEGORY, FUNCTION, RETURN_TYPES = "theirs", "run", ("HYPER_LORA",)
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})

class Save(Loader):
    RETURN_TYPES, OUTPUT_NODE = (), True

NODE_CLASS_MAPPINGS = {"HyperLoRALoader": Loader, "HyperLoRASaveLoRA": Save}
"""


def test_beside_another_pack_of_these_names(server, tmp_path):
    pack = tmp_path / "custom_nodes" / "theirs"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(THEIRS)
    both = ComfyUI(server.host, tmp_path)
    try:
        known = both.get("/object_info")
        assert known["HyperLoRALoader"]["category"] == "theirs"
        assert known["HyperLoRASaveLoRA"]["python_module"].startswith("custom_nodes.hyperlora")
        assert known["HyperLoRAUniLoader"]["python_module"].startswith("custom_nodes.hyperlora")
        said = both.tail(1000)
        assert said.count("Theirs run: HyperLoRALoader") == 1
    finally:
        both.stop()
