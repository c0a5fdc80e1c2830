"""What the tests of a queue run, and what must come out of it."""

import csv
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from fake_comfyui import FakeComfyUI
from places import ROOT

WORKFLOW = {
    "4": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Load Image"}},
    "8": {"class_type": "HyperLoRATriggerPrompt", "inputs": {"prompt": "x"}, "_meta": {"title": "Trigger Prompt"}},
    "12": {"class_type": "KSampler", "inputs": {"seed": 1, "photo": ["4", 0], "positive": ["8", 0]}},
    "14": {"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": "demo"}},
}
PROMPTS = ("a portrait", "in a forest")


def names(seeds: int = 2) -> list[str]:
    return [f"{person}_p{p:02}_s{s}.png" for person in ("anna", "ben") for p in (1, 2) for s in range(1, seeds + 1)]


def check(out: Path, seeds: int = 2) -> list[dict]:
    """All pictures are there, each the right one, nothing else; returns the index."""
    there = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert sorted(there) == sorted(names(seeds))
    assert len(set(there.values())) == len(there)
    with (out / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == names(seeds)
    assert {row["status"] for row in rows} == {"done"}
    for row in rows:
        number = int(row["prompt number"])
        assert row["prompt"] == PROMPTS[number - 1]
        assert row["file"] == f"{row['identity']}_p{number:02}_s{row['seed']}.png"
    assert not list(out.glob(".*"))
    return rows


def ran_once(*servers: FakeComfyUI, jobs: int) -> None:
    ran = sum((server.ran for server in servers[1:]), servers[0].ran)
    assert len(ran) == jobs and set(ran.values()) == {1}, ran.values()


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


@contextmanager
def started(command: list[str]):
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "hyperlora_core", *command]
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=0
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def seed_of(prompt: dict) -> int:
    return prompt["12"]["inputs"]["seed"]


def post(server: FakeComfyUI, seed: int) -> str:
    """Somebody else's job."""
    workflow = {node: spec for node, spec in WORKFLOW.items() if node != "4"}
    workflow["12"] = {"class_type": "KSampler", "inputs": {"seed": seed}}
    body = json.dumps({"prompt": workflow, "client_id": "somebody else"}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/prompt", body, method="POST")) as answer:
        return json.load(answer)["prompt_id"]
