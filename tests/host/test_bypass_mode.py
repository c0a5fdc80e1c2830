"""Apply's bypass mode in the host: the picture of merge mode, beside core's bypass LoRAs, and nothing stays behind."""

import json
import os
import re
import subprocess
import sys
import time
import uuid
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from find import find_hosts
from graphs import demo, nodes_of
from people import photo_of

SCRIPT = Path(__file__).with_name("bypass_checks.py")


@cache
def checks(host: Path) -> dict[str, str | None]:
    """Check -> what went wrong."""
    environment = os.environ | {"PYTHONPATH": str(host)}
    run = subprocess.run([sys.executable, SCRIPT], cwd=host, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("host", find_hosts(), ids=lambda host: host.name)
@pytest.mark.parametrize("name", re.findall(r"^def (check_\w+)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE))
def test_in_process(host, name):
    problem = checks(host)[name]
    assert problem is None, problem


def paint(server, photo: str, mode: str) -> np.ndarray:
    return server.run(demo(photo, HyperLoRAApply={"mode": mode})).picture().astype(int)


def paint_plain(server, photo: str, seed: int) -> np.ndarray:
    """Without the person; the seed so that it is painted, not remembered."""
    graph = demo(photo, KSampler={"model": ["1", 0], "seed": seed})
    return server.run(graph).picture().astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one - other).max()


def test_the_same_picture_as_merged(server, anna):
    merged, bypass = paint(server, anna, "merge"), paint(server, anna, "bypass")
    assert differ(merged, bypass) <= 2
    plain = paint_plain(server, anna, 1)
    assert np.abs(bypass - plain).mean() > 1


def test_workflows_without_the_input_merge(server, anna):
    graph = demo(anna)
    del graph["7"]["inputs"]["mode"]
    assert np.array_equal(server.run(graph).picture(), paint(server, anna, "merge"))
    assert "mode" in server.get("/object_info/HyperLoRAApply")["HyperLoRAApply"]["input"]["optional"]


def test_people_in_turn_leave_nothing_of_each_other(server, anna):
    """Each picture is painted anew, since each photo comes under a name that the server doesn't know."""

    def ben(mode: str) -> np.ndarray:
        return paint(server, server.upload(photo_of(1), f"{uuid.uuid4().hex}.png"), mode)

    merged = ben("merge")
    first = ben("bypass")
    assert differ(first, merged) <= 2 < differ(paint(server, anna, "bypass"), first)
    assert np.array_equal(ben("bypass"), first)
    paint(server, anna, "bypass")
    assert np.array_equal(ben("merge"), merged)


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_core_s_bypass_lora(server, anna, ours_first):
    def both(bypass: bool) -> np.ndarray:
        graph = demo(anna, HyperLoRAApply={"mode": "bypass" if bypass else "merge", "base_weight": 0})
        (sampler,) = nodes_of(graph, "KSampler")
        source = ["7", 0] if ours_first else ["1", 0]
        lora = {"lora": ["6", 1], "strength_model": 0.5, "bypass": bypass}
        graph["20"] = {"class_type": "LoraModelLoader", "inputs": {"model": source} | lora}
        if ours_first:
            graph[sampler]["inputs"]["model"] = ["20", 0]
        else:
            graph["7"]["inputs"]["model"] = ["20", 0]
        return server.run(graph).picture().astype(int)

    assert differ(both(bypass=True), both(bypass=False)) <= 2


def test_stopped_in_the_middle(server, anna):
    plain, bypass = paint_plain(server, anna, 7), paint(server, anna, "bypass")
    endless = demo(anna, HyperLoRAApply={"mode": "bypass"}, KSampler={"steps": 5000, "seed": 8})
    prompt_id = server.post("/prompt", {"prompt": endless, "client_id": uuid.uuid4().hex})["prompt_id"]
    deadline = time.monotonic() + 120
    while prompt_id not in server.get("/history"):
        assert time.monotonic() < deadline, server.tail()
        time.sleep(1)
        server.post("/interrupt", {})
    assert "execution_interrupted" in dict(server.get(f"/history/{prompt_id}")[prompt_id]["status"]["messages"])
    # another picture between, so that neither is remembered
    again = server.run(demo(anna, KSampler={"model": ["1", 0], "seed": 7, "denoise": 0.999999})).picture()
    assert differ(again.astype(int), plain) <= 1
    again = server.run(demo(anna, HyperLoRAApply={"mode": "bypass"}, KSampler={"denoise": 0.999999})).picture()
    assert differ(again.astype(int), bypass) <= 1
