"""The host's own front end in a browser: each template opens whole, and a person gets a picture by the mouse alone.

HYPERLORA_SCREENSHOTS=FOLDER keeps what the browser shows.
"""

import json
import time

import numpy as np
import pytest
from authors_workflows import STRANGERS, WORKFLOWS, api, graph
from front_end import PACK, UNKNOWN, front_end, keep, open_graph, open_template, prompt_of
from people import photo_of
from PIL import Image
from places import FIXTURES, ROOT

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
PEER_NODES = {
    kind
    for pack in json.loads((FIXTURES / "peer_nodes.json").read_text(encoding="utf-8"))
    for kind in pack["nodes"]
}  # fmt: skip
# a node of the file may come to the page with fewer inputs, when the host doesn't know them
SOCKETS = (
    "() => Object.fromEntries(app.graph.nodes.map(node => [node.id, (node.inputs || []).map(input => input.name)]))"
)
# where a widget lies on the page: widgets of a node that is drawn on the canvas are no elements of the page
PLACE = """([kind, name]) => {
    const node = app.graph.nodes.find(node => node.type === kind)
    app.canvas.centerOnNode(node)
    app.canvas.draw(true, true)
    const widget = node.widgets.find(widget => widget.name === name)
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10])
    const box = app.canvas.canvas.getBoundingClientRect()
    return [x + box.left, y + box.top]
}"""
PICTURE_TIME = 300  # s


@pytest.fixture(scope="module")
def page(server, browser):
    with front_end(server, browser) as opened:
        yield opened


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_whole(page, name):
    page.errors.clear()
    open_template(page, name)
    shipped = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert page.evaluate("() => app.graph.nodes.length") == len(shipped["nodes"])
    of_peers = {node["type"] for node in shipped["nodes"]} & PEER_NODES
    assert set(page.evaluate(UNKNOWN)) == of_peers, "other packs' nodes are missing here, and nothing else"
    sockets = page.evaluate(SOCKETS)
    for node in shipped["nodes"]:
        if node["type"].startswith("HyperLoRA"):
            wanted = {given["name"] for given in node.get("inputs", ())}
            assert wanted <= set(sockets[str(node["id"])]), f"{name}: {node['type']} lost an input"
    keep(page, name)

    def expected(error: str) -> bool:
        """A missing node by its name; files that may be absent: a user's own settings, what isn't downloaded yet."""
        absent = "Failed to load resource" in error and "hyperlora" not in error.lower()
        return absent or any(kind in error for kind in of_peers)

    assert not [error for error in page.errors if not expected(error)]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_of_the_authors_pack_opens_as_it_was_saved(page, name):
    """The editor's format: widgets by their position, which today's nodes must still have."""
    open_graph(page, graph(name))
    wanted = api(name)
    missing = {node["class_type"] for node in wanted.values()} & STRANGERS.keys()
    assert set(page.evaluate(UNKNOWN)) == missing
    prompt = prompt_of(page)
    for number, node in wanted.items():
        if node["class_type"] not in missing:
            seen = prompt[number]["inputs"]
            assert {key: seen.get(key) for key in node["inputs"]} == node["inputs"], node["class_type"]


def test_a_person_by_the_mouse(server, browser, tmp_path):
    """Open the demo, choose a photo, press Run, see the picture."""
    with front_end(server, browser) as page:
        paint_a_person(server, page, tmp_path)


def paint_a_person(server, page, tmp_path):
    photo = tmp_path / "a_new_person.png"
    photo_of(3).save(photo)
    page.get_by_role("button", name="Templates").first.click()
    window = page.get_by_role("dialog")
    window.get_by_text(PACK, exact=True).first.click()
    window.get_by_text("demo", exact=True).first.click()
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'LoadImage')")
    before = set(server.get("/history"))
    place = page.evaluate(PLACE, ["LoadImage", "upload"])
    with page.expect_file_chooser() as chooser:
        page.mouse.move(*place)  # the canvas looks for what is below before it hears a click
        page.mouse.click(*place, delay=200)
    chooser.value.set_files(photo)
    page.wait_for_function(
        "() => app.graph.nodes.find(node => node.type === 'LoadImage').widgets[0].value.startsWith('a_new_person')"
    )
    page.get_by_role("button", name="Run").first.click()
    end = time.monotonic() + PICTURE_TIME
    while not (done := set(server.get("/history")) - before):
        assert time.monotonic() < end, f"no picture in {PICTURE_TIME} s:\n{server.tail()}"
        time.sleep(1)
    entry = server.get("/history")[done.pop()]
    assert entry["status"]["status_str"] == "success"
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'SaveImage' && node.imgs?.length)")
    keep(page, "demo_after_run")
    pictures = [picture for output in entry["outputs"].values() for picture in output.get("images", ())]
    (saved,) = (picture for picture in pictures if picture["type"] == "output")
    assert np.asarray(Image.open(server.base / "output" / saved["subfolder"] / saved["filename"])).std() > 10
