"""The shipped workflows as files: graph and API format say the same, and everything that they name exists."""

import json
import re

import pytest
from PIL import Image
from places import ROOT

FOLDER = ROOT / "workflows"
GRAPHS = sorted(FOLDER.glob("*.json"))
SAVED_CONTROLS = {"seed": 1, "image": 1}  # widgets after which the editor saves one more value


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def project(key: str) -> str:
    return re.search(rf'^{key} = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


def values(node: dict) -> dict:
    """Widget name -> value, without the values of the editor's own controls."""
    saved, named = list(node["widgets_values"]), {}
    for socket in node["inputs"]:
        if "widget" in socket:
            named[socket["name"]] = saved.pop(0)
            del saved[: SAVED_CONTROLS.get(socket["name"], 0)]
    assert not saved, f"{node['type']} has more values than widgets: {saved}"
    return named


def steps(graph: dict) -> list[dict]:
    return [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]


@pytest.fixture(params=GRAPHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def graph(path):
    return read(path)


def test_there_are_workflows():
    assert {"01_portrait_from_photo", "demo"} <= {path.stem for path in GRAPHS}
    assert {path.name for path in GRAPHS} == {path.name for path in (FOLDER / "api").glob("*.json")}


def test_api_format_says_the_same(path, graph):
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    from_graph = {}
    for node in steps(graph):
        inputs = values(node)
        inputs |= {socket["name"]: links[socket["link"]] for socket in node["inputs"] if socket["link"] is not None}
        from_graph[str(node["id"])] = (node["type"], inputs)
    api = {name: (node["class_type"], node["inputs"]) for name, node in read(FOLDER / "api" / path.name).items()}
    assert from_graph == api


def test_links_agree_at_both_ends(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    for number, start, output, end, slot, kind in graph["links"]:
        assert nodes[end]["inputs"][slot]["link"] == number
        assert number in nodes[start]["outputs"][output]["links"]
        assert nodes[start]["outputs"][output]["type"] == nodes[end]["inputs"][slot]["type"] == kind
    ends = [socket["link"] for node in nodes.values() for socket in node["inputs"] if socket["link"] is not None]
    assert sorted(ends) == [link[0] for link in graph["links"]]
    assert graph["last_link_id"] == len(graph["links"])
    assert graph["last_node_id"] == max(nodes)


def test_nothing_overlaps_and_every_step_is_in_a_group(graph):
    title = 30
    boxes = [(x, y - title, x + w, y + h) for (x, y), (w, h) in ((n["pos"], n["size"]) for n in graph["nodes"])]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for a, b, c, d in boxes[:i]:
            assert right <= a or c <= left or bottom <= b or d <= top
    for node in steps(graph):
        (x, y), (width, height) = node["pos"], node["size"]
        frames = [group["bounding"] for group in graph["groups"]]
        assert any(a <= x and x + width <= a + w and b <= y - title and y + height <= b + h for a, b, w, h in frames), (
            node["type"]
        )


def test_nodes_name_their_pack(graph):
    for node in steps(graph):
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        if node["type"].startswith("HyperLoRA"):
            assert (properties["cnr_id"], properties["ver"]) == (project("name"), project("version"))
        else:
            assert properties["cnr_id"] == "comfy-core"


def test_downloads_are_those_of_the_catalog(graph):
    catalog = read(ROOT / "models" / "catalog.json")
    places = {file["path"]: file["url"] for item in catalog["items"] for file in item["files"]}
    for node in steps(graph):
        for model in node["properties"].get("models", []):
            assert places[f"{model['directory']}/{model['name']}"] == model["url"]
            # the editor offers no other hosts and kinds of files, and only for a file that a widget names
            assert model["url"].startswith(("https://huggingface.co/", "https://civitai.com/"))
            assert model["name"].endswith((".safetensors", ".sft", ".ckpt", ".pth", ".pt"))
            assert model["name"] in node["widgets_values"]


def test_note_says_what_to_do(graph):
    (note,) = (node for node in graph["nodes"] if node["type"] == "MarkdownNote")
    (text,) = note["widgets_values"]
    assert "Load Image" in text and "Run" in text
    for node in steps(graph):
        for model in node["properties"].get("models", []):
            assert f"{model['directory']}/{model['name']}" in text
    for file in re.findall(rf"/api/workflow_templates/{project('name')}/([^)\s]+)", text):
        assert (FOLDER / file).is_file(), file
    for name in re.findall(r"template \*\*(\w+)\*\*", text):
        assert (FOLDER / f"{name}.json").is_file(), name


def test_thumbnail(path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size <= 60_000
    with Image.open(picture) as opened:
        assert opened.format == "JPEG"
        assert opened.width == opened.height >= 400


def test_texts_fit_every_machine(path):
    for file in (path, FOLDER / "api" / path.name):
        assert file.name.isascii()
        text = file.read_bytes().decode("ascii")
        assert not re.search(r'"(/(?!api/)|~|[A-Za-z]:[\\/])', text), "an absolute path"
        assert "\\\\" not in text, "a path of Windows"
