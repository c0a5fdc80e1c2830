"""`python -m benchmarks.soak` without a server: what counts as flat, what is sent, what is written."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.speed.memory import Memory, memory_of

MB = 10**6


def curve(generations: int = 500, leak: float = 0.0, noise: float = 2 * MB) -> list[int]:
    """A server that warms up in a tenth of the time, then wavers, and leaks so many bytes a generation."""
    numbers = np.arange(generations)
    wavering = np.random.default_rng(0).normal(0, noise, generations)
    return list(900 * MB + 300 * MB * np.minimum(1, 10 * numbers / generations) + wavering + leak * numbers)


def test_warming_up_and_wavering_is_flat():
    verdict = soak.judge(curve())
    assert verdict.flat and abs(verdict.slope) < 0.01 * MB and "Flat" in str(verdict)


@pytest.mark.parametrize("leak", [0.1, 1])  # MB a generation; a person's two LoRAs of the demo have 1
def test_a_leak_is_found(leak):
    verdict = soak.judge(curve(leak=leak * MB))
    assert verdict.flat is False and verdict.slope == pytest.approx(leak * MB, rel=0.2) and "NOT FLAT" in str(verdict)


def test_a_leak_in_steps_is_found():
    own = np.array(curve()) + 20 * MB * (np.arange(500) // 100)
    assert soak.judge(own).flat is False


def test_what_rises_once_is_not_a_slope_but_growth():
    own = np.array(curve())
    own[420:] += 50 * MB
    verdict = soak.judge(own)
    assert verdict.slope < soak.MOST_SLOPE and verdict.growth > soak.MOST_GROWTH and verdict.flat is False


@pytest.mark.parametrize("generations", [1, 2, 30])
def test_too_few_to_tell(generations):
    verdict = soak.judge(curve(generations))
    assert verdict.flat is None and "Too few" in str(verdict)


HOLDING = """
print("started", flush=True)
input()
held = b"x" * 50_000_000
print("held", flush=True)
input()
"""


def test_memory_is_what_the_system_counts():
    """Of a process of its own: this one may have memory in hand that was freed before."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        before = memory_of(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        after = memory_of(process.pid)
        process.communicate("\n")
    assert after.own - before.own == pytest.approx(50_000_000, rel=0.1)
    assert after.rss >= after.own


class Server:
    """Stands for ComfyUI: takes workflows, and says which."""

    def __init__(self, error=None):
        self.process, self.ran, self.posted, self.error = SimpleNamespace(pid=os.getpid()), [], [], error

    def upload(self, picture, name):
        return name

    def run(self, graph):
        self.ran.append({node["class_type"]: node["inputs"] for node in graph.values()})
        return SimpleNamespace(error=self.error)

    def post(self, path, body):
        self.posted.append((path, body))


def test_every_generation_is_another_person():
    server = Server()
    samples = soak.soak(server, 12, 3, lambda done, total, **counts: None)
    assert len(samples) == 12
    photos = [graph["LoadImage"]["image"] for graph in server.ran]
    assert all(one != after for one, after in pairwise(photos)) and len(set(photos)) == 3
    seen = {(photo, graph["HyperLoRAApply"]["mode"]) for photo, graph in zip(photos, server.ran, strict=True)}
    assert len(seen) == 3 * len(soak.MODES), "each person in each mode"
    assert len({graph["KSampler"]["seed"] for graph in server.ran}) == 12


@pytest.mark.parametrize(("error", "status"), [(None, 1), ("No face.", 2)])
def test_report(monkeypatch, tmp_path, capsys, error, status):
    pytest.importorskip("matplotlib")

    @contextmanager
    def own_server(host):
        yield Server(error)

    monkeypatch.setattr(soak, "own_server", own_server)
    monkeypatch.setattr(soak, "memory_of", lambda process: Memory(3 * 10**9, None, 10**9))
    (tmp_path / "main.py").touch()
    command = ["--comfyui", str(tmp_path), "--generations", "25", "--people", "2", "--out", str(tmp_path / "out")]
    assert soak.main(command) == status
    assert (tmp_path / "out").exists() is (error is None)
    if error is None:
        report = json.loads((tmp_path / "out" / "soak.json").read_text(encoding="utf-8"))
        assert len(report["samples"]) == 25 and report["flat"] is None
        assert (tmp_path / "out" / "soak.png").stat().st_size > 1000
        said = capsys.readouterr().out
        rows = [line for line in said.splitlines() if line.startswith("| ") and " to " in line]
        assert len(rows) == 10 and all(row.endswith("| 3.00 GB |  | 1.00 GB |") for row in rows)
