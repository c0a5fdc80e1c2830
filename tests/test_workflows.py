"""The shipped workflows as files: graph and API format say the same, and everything that they name exists."""

import importlib
import json
import re

import pytest
from PIL import Image
from places import FIXTURES, ROOT

FOLDER = ROOT / "workflows"
GRAPHS = sorted(FOLDER.glob("*.json"))
PEERS = json.loads((FIXTURES / "peer_nodes.json").read_text(encoding="utf-8"))
# widgets after which the editor saves one more value
SAVED_CONTROLS = {
    "seed": ("randomize", "fixed"),
    ("PrimitiveInt", "value"): ("fixed",),
    ("LoadImage", "image"): ("image",),
}


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def project(key: str) -> str:
    return re.search(rf'^{key} = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]


def values(node: dict) -> dict:
    """Widget name -> value, without the values of the editor's own controls."""
    saved, named = list(node["widgets_values"]), {}
    for socket in node["inputs"]:
        if "widget" in socket:
            name = socket["name"]
            named[name] = saved.pop(0)
            controls = SAVED_CONTROLS.get((node["type"], name), SAVED_CONTROLS.get(name))
            assert controls is None or saved.pop(0) in controls, f"{node['type']}.{name}"
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


def test_every_described_workflow_is_there_and_sorts_as_meant(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    described = importlib.import_module("describe").WORKFLOWS
    assert {path.stem for path in GRAPHS} == set(described) and list(described) == sorted(described)
    assert {path.name for path in GRAPHS} == {path.name for path in (FOLDER / "api").glob("*.json")}


def test_the_page_lists_them_with_their_packs():
    page = (ROOT / "docs" / "workflows.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(\w+)\]", page, re.M)) == {path.stem for path in GRAPHS}
    for pack in PEERS:
        assert f"| `{pack['name']}` | {pack['version']} |" in page and pack["repository"] in page


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
        assert nodes[start]["outputs"][output]["type"] == kind
        assert {kind, "*"} & {*nodes[end]["inputs"][slot]["type"].split(",")}
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
    peers = {kind: (pack["name"], pack["version"]) for pack in PEERS for kind in pack["nodes"]}
    for node in steps(graph):
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        if node["type"].startswith("HyperLoRA"):
            assert (properties["cnr_id"], properties["ver"]) == (project("name"), project("version"))
        elif node["type"] in peers:
            assert (properties["cnr_id"], properties["ver"]) == peers[node["type"]]
        else:
            assert properties["cnr_id"] == "comfy-core"


def test_peers_nodes_are_as_the_fixture_says(graph):
    definitions = {kind: definition for pack in PEERS for kind, definition in pack["nodes"].items()}
    for node in steps(graph):
        if node["type"] not in definitions:
            continue
        definition = definitions[node["type"]]
        declared = {
            name: kind
            for group in ("required", "optional")
            for name, (kind, _) in definition["input"].get(group, {}).items()
        }
        assert {socket["name"] for socket in node["inputs"]} == declared.keys()
        assert [output["name"] for output in node["outputs"]] == definition["output_name"]
        assert [output["type"] for output in node["outputs"]] == definition["output"]
        linked = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
        given = values(node)
        assert definition["input"]["required"].keys() <= linked | given.keys()
        for name, value in given.items():
            if isinstance(declared[name], list) and declared[name]:
                assert value in declared[name], f"{node['type']}.{name} = {value}"


def test_peers_packs_are_named_in_the_note(graph):
    (note,) = (node for node in graph["nodes"] if node["type"] == "MarkdownNote")
    used = {node["type"] for node in steps(graph)}
    for pack in PEERS:
        assert (pack["repository"] in note["widgets_values"][0]) == bool(used & pack["nodes"].keys()), pack["name"]


# the editor offers no other hosts and kinds of files, and a file only when a widget of the node names it
OFFERED = re.compile(r"https://(huggingface\.co|civitai\.com)/.+")
KINDS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")


def test_every_file_that_the_editor_can_download_is_offered(graph):
    catalog = read(ROOT / "models" / "catalog.json")
    places = {file["path"]: file["url"] for item in catalog["items"] for file in item["files"]}
    for node in steps(graph):
        texts = [value for value in values(node).values() if isinstance(value, str)]
        named = {path: url for path, url in places.items() if path.partition("/")[2] in texts}
        can = {path: url for path, url in named.items() if OFFERED.fullmatch(url or "") and path.endswith(KINDS)}
        offered = node["properties"].get("models", [])
        assert {f"{model['directory']}/{model['name']}": model["url"] for model in offered} == can
        assert all(model["name"] in texts for model in offered)


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


@pytest.mark.parametrize("path", sorted((FOLDER / "api").glob("*compare*.json")), ids=lambda path: path.stem)
def test_comparisons_save_each_method_s_picture_by_name(path):
    nodes = read(path)
    (sheet,) = (node["inputs"] for node in nodes.values() if node["class_type"] == "HyperLoRACompare")
    saved = [node["inputs"] for node in nodes.values() if node["class_type"] == "SaveImage"]
    _photo, *methods = sheet["labels"].splitlines()
    # in this order a queue numbers them
    names = [one["filename_prefix"] for one in saved]
    assert names == [f"hyperlora_comparison/{label}" for label in (*methods, "sheet")] and len(methods) > 2
    assert [one["images"] for one in saved[:-1]] == [sheet[f"images_{n}"] for n in range(2, len(methods) + 2)]


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
