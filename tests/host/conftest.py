"""A server per host that was found, for all tests of this folder."""

import shutil
from pathlib import Path

import pytest
from comfyui import ComfyUI
from find import find_hosts
from front_end import BROWSER, FLAGS
from people import photo_of
from places import FIXTURES, ROOT


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.host)


def elsewhere(folder: Path) -> Path:
    """Models outside of the host's folder, as extra_model_paths.yaml names them; the face pack unzipped one level too deep."""
    shutil.copytree(FIXTURES / "with_base", folder / "people" / "small_elsewhere")
    pack = folder / "faces" / "models" / "nested" / "nested"
    pack.mkdir(parents=True)
    for file in (ROOT / "models" / "demo" / "face").glob("*.onnx"):
        (pack / file.name).symlink_to(file)
    settings = folder / "extra_model_paths.yaml"
    settings.write_text(f"elsewhere:\n    base_path: {folder}\n    hyper_lora: people\n    insightface: faces\n")
    return settings


@pytest.fixture(scope="session", params=find_hosts() or [None], ids=lambda host: host.name if host else "no host")
def server(request, tmp_path_factory):
    if request.param is None:
        pytest.skip("NO COMFYUI FOUND: the pack is not tested in its host. Set COMFYUI_PATH, or run: comfy install")
    base = tmp_path_factory.mktemp("comfyui")
    comfyui = ComfyUI(request.param, base, ("--extra-model-paths-config", str(elsewhere(base / "elsewhere"))))
    yield comfyui
    comfyui.stop()


@pytest.fixture(scope="session")
def anna(server):
    """A photo's name on the server."""
    return server.upload(photo_of(0), "anna.png")


@pytest.fixture(scope="session")
def ben(server):
    return server.upload(photo_of(1), "ben.png")


@pytest.fixture(scope="module")
def browser():
    """For one file's tests: as long as it is open, an event loop runs, which others can't have."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    if BROWSER is None:
        pytest.skip("NO BROWSER FOUND: templates are not opened in the front end. Install chromium.")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield started
        started.close()
