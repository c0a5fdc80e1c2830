"""A hub, and a catalogue that offers what it has."""

import threading
from http.server import ThreadingHTTPServer

import pytest
from toy_hub import WEIGHTS, Hub

from hyperlora_core import download
from hyperlora_core.catalog import CatalogItem


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {"model.safetensors": WEIGHTS}
    server.served, server.content_type, server.knows_ranges = None, "application/octet-stream", True
    server.ranges, server.breaks_at, server.breaks_next, server.pause = [], 0, 0, 0
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def offer(monkeypatch):
    def put(*files):
        item = CatalogItem("it", "It", "more", "testing", "none", "https://example.org/it", files)
        monkeypatch.setattr(download, "pick", lambda names: [item])

    return put
