"""Workflows in a ComfyUI that has the other packs: accepted when the files are there; the packs' nodes as we know them.

PEERS_PATH names a folder with the packs (a custom_nodes folder will do); without it, the hosts' own are looked through.
PEERS_PYTHONPATH adds a folder with what those packs import.
"""

import json
import os
from pathlib import Path

import authors_workflows
import peer_nodes
import pytest
from comfyui import ComfyUI
from find import find_hosts
from front_end import UNKNOWN, front_end, keep, open_graph, open_template, prompt_of
from people import photo_of
from places import ROOT

from hyperlora_core.catalog import load_catalog

FOLDER = ROOT / "workflows" / "api"
# a script of Impact Pack 7.10.6 that keeps today's editor from opening any graph with a switch
BROKEN = "**/ComfyUI-Impact-Pack/comboBoolMigration.js"
PACKS = json.loads(peer_nodes.FIXTURE.read_text(encoding="utf-8"))


def installed() -> dict[str, Path]:
    """Folder name -> pack, of those in the fixture that are on this machine."""
    named = os.environ.get("PEERS_PATH")
    places = [Path(named)] if named else [host / "custom_nodes" for host in find_hosts()]
    found = {}
    for pack in PACKS:
        for place in places:
            if (place / pack["folder"] / "__init__.py").is_file():
                found.setdefault(pack["folder"], place / pack["folder"])
    return found


@pytest.fixture(scope="module")
def packs():
    found = installed()
    if not find_hosts() or not found:
        pytest.skip("NO OTHER PACKS FOUND: the comparison workflows are not tested with them. Set PEERS_PATH")
    return found


@pytest.fixture(scope="module")
def server(packs, tmp_path_factory):
    base = tmp_path_factory.mktemp("with_peers")
    (base / "custom_nodes").mkdir()
    for name, place in packs.items():
        (base / "custom_nodes" / name).symlink_to(place)
    for item in load_catalog().values():
        for file in item.files:
            for name, _ in file.members or (("", None),):
                path = base / "models" / file.path / name  # empty: enough to be chosen
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    comfyui = ComfyUI(find_hosts()[0], base, python_path=os.environ.get("PEERS_PYTHONPATH", ""))
    yield comfyui
    comfyui.stop()


@pytest.mark.parametrize("folder", [pack["folder"] for pack in PACKS])
def test_their_nodes_are_as_we_know_them(server, packs, folder):
    if folder not in packs:
        pytest.skip(f"{folder} isn't installed here")
    known = next(pack for pack in PACKS if pack["folder"] == folder)
    there = server.get("/object_info")
    missing = [kind for kind in known["nodes"] if kind not in there]
    assert not missing, f"{folder} was not loaded, or lacks {missing}: is all that it imports in PEERS_PYTHONPATH?"
    seen = peer_nodes.pack(there, packs[folder])
    for kind, definition in known["nodes"].items():
        assert seen["nodes"][kind] == definition, (
            f"{kind} of {folder} {seen['version']} isn't as in {known['version']}: look at what changed, then write the "
            "fixture again with tests/peer_nodes.py and the workflows with workflows/build.py"
        )
    assert {key: seen[key] for key in ("name", "repository")} == {key: known[key] for key in ("name", "repository")}


def kinds_of(name: str) -> set[str]:
    workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return {node["class_type"] for node in workflow.values()}


NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
OF_PEERS = [name for name in NAMES if any(kinds_of(name) & pack["nodes"].keys() for pack in PACKS)]


def skip_without_packs(name: str, packs: dict) -> None:
    kinds = kinds_of(name)
    missing = [pack["folder"] for pack in PACKS if kinds & pack["nodes"].keys() and pack["folder"] not in packs]
    if missing:
        pytest.skip(f"{', '.join(missing)} isn't installed here")


@pytest.mark.parametrize("name", NAMES)
def test_accepted(server, packs, name):
    skip_without_packs(name, packs)
    accepted(server, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def test_one_face_analysis_for_ip_adapter_and_us(server, packs):
    """Their type has another name: our second output, and their loader into our nodes."""
    name = "22_compare_with_ip_adapter_faceid"
    skip_without_packs(name, packs)
    workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    theirs = {"class_type": "IPAdapterInsightFaceLoader", "inputs": {"provider": "CPU", "model_name": "buffalo_l"}}
    workflow["100"] = theirs
    for number, node in workflow.items():
        if node["class_type"] == "HyperLoRALoadFaceAnalysis":
            ours = number
        if node["class_type"] == "HyperLoRAEncodeIdentity":
            node["inputs"]["face_analysis"] = ["100", 0]
    for node in workflow.values():
        if node["class_type"] == "IPAdapterFaceID":
            node["inputs"]["insightface"] = [ours, 1]
    accepted(server, workflow)


@pytest.fixture(scope="module")
def page(server, browser):
    with front_end(server, browser, without=BROKEN) as opened:
        yield opened


@pytest.mark.parametrize("name", OF_PEERS)
def test_accepted_from_the_graph_editor(server, packs, page, name):
    """What the editor itself makes of the graph, with the other packs' nodes there."""
    skip_without_packs(name, packs)
    open_template(page, name)
    assert page.evaluate(UNKNOWN) == []
    keep(page, f"{name}_with_packs")
    prompt = prompt_of(page)
    assert {node["class_type"] for node in prompt.values()} == kinds_of(name)
    accepted(server, prompt)


AUTHORS = {"instantid": "ComfyUI_InstantID", "face_detailer": "ComfyUI-Impact-Pack"}


@pytest.mark.parametrize("name", AUTHORS)
@pytest.mark.parametrize("saved_as", ["graph", "API"])
def test_the_authors_workflows_with_other_packs(server, packs, page, name, saved_as):
    """As users of the authors' pack saved them, in both formats, unchanged."""
    if AUTHORS[name] not in packs:
        pytest.skip(f"{AUTHORS[name]} isn't installed here")
    prompt = authors_workflows.api(name)
    if saved_as == "graph":
        open_graph(page, authors_workflows.graph(name))
        assert page.evaluate(UNKNOWN) == []
        prompt = prompt_of(page)
    accepted(server, prompt)


def accepted(server, workflow: dict) -> None:
    photo = server.upload(photo_of(0), "template.png")
    for node in workflow.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = photo
    # refused with every problem of every node otherwise
    assert server.post("/prompt", {"prompt": workflow})["node_errors"] == {}
