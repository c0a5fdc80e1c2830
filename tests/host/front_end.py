"""The host's own front end in a headless browser."""

import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

PACK = "hyperlora-zero-shot"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# what a browser must leave alone to be quiet and to start anywhere
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
UNKNOWN = "() => app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type)"


def complaint(message, server) -> str:
    """What the console says, without addresses that aren't the server's: there is no network to ask for models' sizes."""
    url = message.location.get("url", "")
    return f"{message.text} {url if url.startswith(server.url) else ''}"


@contextmanager
def front_end(server, browser, without: str = ""):
    """A page, and in `page.errors` what its console complained of. `without`: a script that isn't loaded."""
    page = browser.new_page(viewport={"width": 1920, "height": 1080})
    if without:
        page.route(without, lambda route: route.abort())
    page.errors = []
    page.on(
        "console", lambda message: page.errors.append(complaint(message, server)) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    # a first visit would begin with the window of all templates
    page.request.post(f"{server.url}/api/settings/Comfy.TutorialCompleted", data="true")
    page.goto(server.url)
    page.wait_for_function("() => window.app && app.graph && app.canvas", timeout=180_000)
    # nodes come after the canvas
    page.wait_for_function("() => LiteGraph.registered_node_types['HyperLoRAEncodeIdentity']", timeout=60_000)
    yield page
    page.close()


def open_template(page, name: str) -> None:
    page.evaluate(
        """async ([pack, name]) => {
            const file = await fetch(`/api/workflow_templates/${pack}/${name}.json`)
            await app.loadGraphData(await file.json(), true, true, name)
        }""",
        [PACK, name],
    )


def open_graph(page, graph: dict) -> None:
    """As a user does who opens a saved file."""
    page.evaluate("async graph => { await app.loadGraphData(graph) }", graph)


def prompt_of(page) -> dict:
    """What the editor makes of the open graph for /prompt."""
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def keep(page, name: str) -> None:
    if folder := os.environ.get("HYPERLORA_SCREENSHOTS"):
        time.sleep(3)  # pictures and fonts come late
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
