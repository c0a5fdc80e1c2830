"""The shipped workflows in a real ComfyUI: listed, as built from the host's definitions, accepted."""

import importlib
import io
import json
import urllib.request

import numpy as np
import pytest
from comfyui import RefusedError
from graphs import SMALL, WORKFLOWS, on_demo, read
from people import photo_of
from PIL import Image
from places import FIXTURES

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
PYTHON_TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
FILE_INPUTS = {"ckpt_name", "checkpoint", "face_pack", "control_net_name"}
CHOICES_OF_PEERS = {"instantid_file", "pulid_file", "model_name", "sampler_name", "scheduler"}  # not in the fixture
PEERS = json.loads((FIXTURES / "peer_nodes.json").read_text(encoding="utf-8"))
PEER_NODES = {kind: definition for pack in PEERS for kind, definition in pack["nodes"].items()}


@pytest.fixture(scope="module")
def definitions(server):
    """The host's nodes and ours; other packs' as the fixture has them, which test_peers.py compares with the real ones."""
    return server.get("/object_info") | PEER_NODES


def inputs_of(definition: dict) -> dict[str, list]:
    return {
        name: spec for group in ("required", "optional") for name, spec in definition["input"].get(group, {}).items()
    }


def test_templates_and_thumbnails_are_served(server):
    pack = "hyperlora-zero-shot"
    assert sorted(server.get("/workflow_templates")[pack]) == NAMES
    for name in NAMES:
        assert server.get(f"/api/workflow_templates/{pack}/{name}.json") == read(f"{name}.json")
        with urllib.request.urlopen(f"{server.url}/api/workflow_templates/{pack}/{name}.jpg", timeout=60) as answer:
            assert Image.open(io.BytesIO(answer.read())).format == "JPEG"


OUTDATED = "is not up to date: python workflows/build.py --server URL"


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_build_makes(definitions, name, monkeypatch):
    monkeypatch.syspath_prepend(WORKFLOWS)
    texts = importlib.import_module("build").files(definitions)
    built, shipped = json.loads(texts[f"api/{name}.json"]), read(f"api/{name}.json")
    assert built.keys() == shipped.keys(), f"api/{name}.json {OUTDATED}"
    for number, node in shipped.items():
        assert built[number]["class_type"] == node["class_type"]
        # another ComfyUI's core nodes may have more inputs than those that the file was built with
        assert node["inputs"] == {key: built[number]["inputs"].get(key) for key in node["inputs"]}, (
            f"api/{name}.json {OUTDATED}"
        )
    built, shipped = json.loads(texts[f"{name}.json"]), read(f"{name}.json")
    if all(core_sockets(node) == core_sockets(new) for node, new in zip(shipped["nodes"], built["nodes"], strict=True)):
        assert built == shipped, f"{name}.json {OUTDATED}"


def core_sockets(node: dict) -> list[tuple]:
    if node["type"].startswith("HyperLoRA"):
        return []
    return [(socket["name"], socket["type"]) for socket in node["inputs"] + node["outputs"]]


@pytest.mark.parametrize("name", NAMES)
def test_graph_matches_the_host(definitions, name):
    for node in read(f"{name}.json")["nodes"]:
        if node["type"] == "MarkdownNote":
            continue  # lives in the editor only
        definition = definitions[node["type"]]
        inputs, known = {socket["name"] for socket in node["inputs"]}, inputs_of(definition).keys()
        assert inputs <= known
        if node["type"].startswith("HyperLoRA"):
            assert inputs == known, f"{name}.json {OUTDATED}"
        for slot, output in enumerate(node["outputs"]):
            if output["links"]:
                assert (output["name"], output["type"]) == (definition["output_name"][slot], definition["output"][slot])


@pytest.mark.parametrize("name", NAMES)
def test_api_values_have_the_right_type(definitions, name):
    nodes = read(f"api/{name}.json")
    for node in nodes.values():
        definition = definitions[node["class_type"]]
        known = inputs_of(definition)
        assert definition["input"].get("required", {}).keys() <= node["inputs"].keys() <= known.keys()
        for label, value in node["inputs"].items():
            kind, options = (*known[label], {})[:2]
            if isinstance(value, list):
                start, slot = value
                assert {definitions[nodes[start]["class_type"]]["output"][slot], "*"} & {*kind.split(",")}
            elif isinstance(kind, list) or kind == "COMBO":
                choices = kind if isinstance(kind, list) else options["options"]
                of_peer = node["class_type"] in PEER_NODES and label in CHOICES_OF_PEERS
                assert value in choices or of_peer or label in FILE_INPUTS | {"image"}, f"{label} = {value}"
            else:
                assert isinstance(value, PYTHON_TYPES[kind]), f"{label} = {value!r}"
                assert options.get("min", value) <= value <= options.get("max", value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_lacks_nothing_but_the_weights(server, name):
    workflow = read(f"api/{name}.json")
    if {node["class_type"] for node in workflow.values()} & PEER_NODES.keys():
        pytest.skip("needs other packs: see test_peers.py")
    photo = server.upload(photo_of(0), "template.png")
    for node in workflow.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = photo
    with pytest.raises(RefusedError) as refused:
        server.post("/prompt", {"prompt": workflow})
    problems = [problem for node in refused.value.answer["node_errors"].values() for problem in node["errors"]]
    assert {problem["type"] for problem in problems} == {"value_not_in_list"}, problems
    assert {problem["extra_info"]["input_name"] for problem in problems} <= FILE_INPUTS


NEEDS_A_FILE = {"ControlNetLoader"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])
def test_runs_on_the_demo_models(server, name):
    workflow = read(f"api/{name}.json")
    if {node["class_type"] for node in workflow.values()} & {*PEER_NODES, *NEEDS_A_FILE}:
        pytest.skip("needs files that aren't here")
    photos = {server.upload(photo_of(0, scene), f"template_{scene}.png"): photo_of(0, scene) for scene in range(4)}
    picture = server.run(on_demo(workflow, list(photos))).picture(saved(workflow))
    if name == "08_change_only_the_face":
        assert_only_the_face_changed(np.asarray(photos[original(workflow)]), picture)
    else:
        assert picture.shape == (SMALL, SMALL, 3)
    assert picture.std() > 1, "an even colour"


def saved(workflow: dict) -> str:
    return next(number for number, node in workflow.items() if node["class_type"] == "SaveImage")


def original(workflow: dict) -> str:
    """The picture that the face is put into."""
    (paste,) = (node for node in workflow.values() if node["class_type"] == "ImageCompositeMasked")
    return workflow[paste["inputs"]["destination"][0]]["inputs"]["image"]


def assert_only_the_face_changed(before: np.ndarray, after: np.ndarray) -> None:
    assert before.shape == after.shape
    difference = np.abs(before.astype(int) - after).max(axis=2)
    changed = difference > 40
    middle = changed[len(changed) // 4 : -len(changed) // 4, len(changed) // 4 : -len(changed) // 4]
    assert middle.mean() > 0.1
    # around the face to the pixel, but for what saving as uint8 rounds
    assert (difference[:4] > 2).mean() < 0.05 and (difference[-4:] > 2).mean() < 0.05


def test_demo_paints_the_person_that_its_note_offers(server):
    workflow = read("api/demo.json")
    (photo,) = (node for node in workflow.values() if node["class_type"] == "LoadImage")
    photo["inputs"]["image"] = server.upload(
        (WORKFLOWS / "hyperlora_demo_person.png").read_bytes(), "hyperlora_demo_person.png"
    )
    assert server.run(workflow).picture().shape == (128, 128, 3)
