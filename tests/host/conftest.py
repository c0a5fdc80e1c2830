"""A server per host that was found, for all tests of this folder."""

from pathlib import Path

import pytest
from comfyui import ComfyUI
from find import find_hosts


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session", params=find_hosts() or [None], ids=lambda host: host.name if host else "no host")
def server(request, tmp_path_factory):
    if request.param is None:
        pytest.skip("NO COMFYUI FOUND: the pack is not tested in its host. Set COMFYUI_PATH, or run: comfy install")
    comfyui = ComfyUI(request.param, tmp_path_factory.mktemp("comfyui"))
    yield comfyui
    comfyui.stop()
