"""The pack in a real ComfyUI: posted over HTTP as a user's front end does."""

import pytest
from find import find_hosts

HOSTS = find_hosts()


def test_a_host_was_found():
    if not HOSTS:
        pytest.skip("NO COMFYUI FOUND: the pack was not tested in its host. Set COMFYUI_PATH, or run: comfy install")
