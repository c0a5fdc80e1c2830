"""A stand-in server, and a command that sends it jobs."""

import json
from collections.abc import Callable

import pytest
from fake_comfyui import FakeComfyUI
from queue_runs import PROMPTS, WORKFLOW

from hyperlora_core.queue import worker


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(worker, "CHECK", 0.5)
    monkeypatch.setattr(worker, "RECONNECT", 0.1)


@pytest.fixture
def server(tmp_path):
    fake = FakeComfyUI(tmp_path / "server")
    yield fake
    if fake.thread.is_alive():
        fake.kill()


@pytest.fixture
def command(tmp_path) -> Callable[..., list[str]]:
    """The command line for two people, two prompts and `seeds`."""
    for name in ("anna", "ben"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{name}.png").write_text(f"photo of {name}")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))

    def build(*servers: FakeComfyUI, seeds: str = "1-2", out: str = "out") -> list[str]:
        files = [str(tmp_path / name) for name in ("workflow.json", "photos", "prompts.txt", out)]
        urls = [server.url for server in servers]
        return ["queue", files[0], "--photos", files[1], "--prompts", files[2], "--seeds", seeds, "--out", files[3],
                "--server", *urls]  # fmt: skip

    return build
