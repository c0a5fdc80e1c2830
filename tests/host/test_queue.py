"""`hyperlora queue` on the demo workflow, against a real server: the client is killed twice, the server restarted once.

HYPERLORA_QUEUE_JOBS says how many jobs at least (12; the proof that no picture is lost or made twice took 200).
"""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from comfyui import PACK, ComfyUI
from find import find_hosts
from people import photo_of
from PIL import Image

JOBS = int(os.environ.get("HYPERLORA_QUEUE_JOBS", "12"))
PEOPLE, PROMPTS = (2, 2) if JOBS < 100 else (5, 4)
SEEDS = -(-JOBS // (PEOPLE * PROMPTS))
TOTAL = PEOPLE * PROMPTS * SEEDS
AHEAD = 3
PATIENCE = 600  # s, for any one step


@pytest.fixture(params=find_hosts() or [None], ids=lambda host: host.name if host else "no host")
def own_server(request, tmp_path):
    """One that nobody else uses, since it is restarted."""
    if request.param is None:
        pytest.skip(
            "NO COMFYUI FOUND: the queue is not tested with a real server. Set COMFYUI_PATH, or run: comfy install"
        )
    comfyui = ComfyUI(request.param, tmp_path / "comfyui")
    yield comfyui
    comfyui.stop()


@pytest.fixture
def command(tmp_path, own_server) -> list[str]:
    (tmp_path / "photos").mkdir()
    for number in range(PEOPLE):
        photo_of(number).save(tmp_path / "photos" / f"person{number}.png")
    colours = ("blue", "green", "red", "grey")[:PROMPTS]
    (tmp_path / "prompts.txt").write_text("\n".join(f"portrait of a person, {c} background" for c in colours))
    return [
        sys.executable, "-m", "hyperlora_core", "queue", str(PACK / "workflows" / "api" / "demo.json"),
        "--photos", str(tmp_path / "photos"), "--prompts", str(tmp_path / "prompts.txt"), "--seeds", f"1-{SEEDS}",
        "--server", own_server.url, "--out", str(tmp_path / "out"), "--ahead", str(AHEAD), "--patience", str(PATIENCE),
    ]  # fmt: skip


def start(command: list[str], log) -> subprocess.Popen:
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(PACK)}, stdout=log, stderr=subprocess.STDOUT)


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "the client ended"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_two_kills_and_a_restart(own_server, command, tmp_path):
    out = tmp_path / "out"

    def pictures() -> int:
        return len(list(out.glob("*.png")))

    with (tmp_path / "client.log").open("w+") as log:
        for share in (TOTAL // 6, TOTAL // 3):
            client = start(command, log)
            wait_for(lambda share=share: pictures() >= share, client)
            client.kill()
            client.wait()
        client = start(command, log)
        wait_for(lambda: pictures() >= TOTAL * 2 // 3, client)
        own_server.process.kill()
        own_server.process.wait()
        own_server.start()
        assert client.wait(PATIENCE + TOTAL * 10) == 0, (tmp_path / "client.log").read_text()

    with (out / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({(row["identity"], row["prompt"], row["seed"]) for row in rows}) == TOTAL
    assert {row["status"] for row in rows} == {"done"}
    assert all(-1 <= float(row["similarity"]) <= 1 for row in rows), "the workflow judges its pictures"
    assert sorted(row["file"] for row in rows) == sorted(path.name for path in out.glob("*.png"))
    contents = {np.asarray(Image.open(out / row["file"])).tobytes() for row in rows}
    assert len(contents) == TOTAL
    made = len(list((own_server.base / "output").glob("hyperlora_demo*.png")))
    # what the server had finished, and not handed over, when it was killed is made again
    assert TOTAL <= made <= TOTAL + AHEAD
    print(f"{TOTAL} jobs: {made} pictures were made, {pictures()} are there")


@pytest.mark.skipif(os.name == "nt", reason="no signals to send")
def test_ctrl_c_leaves_the_queue_clean(own_server, command, tmp_path):
    with (tmp_path / "client.log").open("w+") as log:
        client = start(command, log)
        wait_for(lambda: list((tmp_path / "out").glob("*.png")), client)
        client.send_signal(signal.SIGINT)
        assert client.wait(60) == 130, (tmp_path / "client.log").read_text()
    end = time.monotonic() + 60
    while (queue := own_server.get("/queue")) != {"queue_running": [], "queue_pending": []}:
        assert not queue["queue_pending"] and time.monotonic() < end, queue
        time.sleep(0.2)
