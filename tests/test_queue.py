"""A queue against a stand-in server: failures, kills and restarts, and that no picture is lost or made twice."""

import asyncio
import csv
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fake_comfyui import FakeComfyUI, JobError
from places import ROOT

from hyperlora_core.cli import main
from hyperlora_core.queue import worker
from hyperlora_core.queue.jobs import Inputs, Job, plan_jobs
from hyperlora_core.queue.run import run_queue
from hyperlora_core.queue.watch import Watch
from hyperlora_core.queue.workflow import Input

WORKFLOW = {
    "4": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Load Image"}},
    "8": {"class_type": "HyperLoRATriggerPrompt", "inputs": {"prompt": "x"}, "_meta": {"title": "Trigger Prompt"}},
    "12": {"class_type": "KSampler", "inputs": {"seed": 1, "photo": ["4", 0], "positive": ["8", 0]}},
    "14": {"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": "demo"}},
}
PROMPTS = ("a portrait", "in a forest")


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


def test_every_job_once(server, command, tmp_path, capsys):
    assert main(command(server)) == 0
    check(tmp_path / "out")
    ran_once(server, jobs=8)
    said = capsys.readouterr().out
    assert "8 of 8 jobs are done" in said and "Load Image (4).image" in said and "[8/8]" in said
    # each photo once, under a name that is nobody's; a person's jobs in a row, so that the identity is cached
    assert sorted(server.uploads) == sorted(
        hashlib.sha256(f"photo of {name}".encode()).hexdigest()[:32] + ".png" for name in ("anna", "ben")
    )
    photos = [prompt["4"]["inputs"]["image"] for prompt in server.order]
    assert photos == sorted(photos, key=photos.index) and photos[0].startswith("hyperlora_queue/")
    assert server.ids() == []
    # again: nothing to do, and the server isn't asked
    server.kill()
    assert main(command(server)) == 0
    assert "8 of 8 jobs are done, 8 of them from earlier runs" in capsys.readouterr().out


def test_what_is_added_is_done_and_what_is_deleted_is_fetched(server, command, tmp_path):
    assert main(command(server, seeds="1")) == 0
    (tmp_path / "out" / "anna_p01_s1.png").unlink()
    (tmp_path / "out" / "ben_p02_s1.png").write_bytes(b"half")
    assert main(command(server)) == 0
    check(tmp_path / "out")
    ran_once(server, jobs=8)


def test_a_lost_journal(server, command, tmp_path):
    """And another folder: what the server's history holds is fetched."""
    assert main(command(server)) == 0
    (tmp_path / "out" / "journal.jsonl").unlink()
    assert main(command(server)) == 0
    assert main(command(server, out="other")) == 0
    check(tmp_path / "other")
    ran_once(server, jobs=8)
    assert server.call(lambda: server.number) == 8  # nothing was sent again


def test_pictures_deleted_on_the_server_and_here(server, command, tmp_path, capsys):
    """The server's cache still answers with their names, until it is restarted."""
    assert main(command(server, seeds="1")) == 0
    for folder in (tmp_path / "out", server.folder / "output"):
        for path in folder.glob("*.png"):
            path.unlink()
    assert main(command(server, seeds="1")) == 1
    assert "the file is gone there (HTTP 404): restart the server" in capsys.readouterr().out
    server.kill()
    server.start()
    assert main(command(server, seeds="1")) == 0
    check(tmp_path / "out", seeds=1)


def test_a_photo_of_this_name_on_the_server_is_left_alone(server, command, tmp_path):
    digest = hashlib.sha256(b"photo of anna").hexdigest()[:32]
    there = server.folder / "input" / "hyperlora_queue" / f"{digest}.png"
    there.parent.mkdir()
    there.write_text("an upload that broke off")
    assert main(command(server)) == 0
    assert there.read_text() == "an upload that broke off"
    assert f"hyperlora_queue/{digest} (1).png" in {prompt["4"]["inputs"]["image"] for prompt in server.order}


def seed_of(prompt: dict) -> int:
    return prompt["12"]["inputs"]["seed"]


def test_failures_are_tried_again(server, command, tmp_path, capsys):
    out_of_memory = JobError("torch.OutOfMemoryError", "CUDA out of memory")
    server.fail = lambda prompt, time: out_of_memory if seed_of(prompt) == 2 and time < 3 else None
    assert main(command(server)) == 0
    check(tmp_path / "out")
    assert sorted(server.ran.values()) == [1] * 4 + [3] * 4
    assert "anna_p01_s2 failed, and is tried again: KSampler (12): CUDA out of memory" in capsys.readouterr().out


def test_failures_that_stay(server, command, tmp_path, capsys):
    no_face = JobError("pack.hyperlora_core.errors.NoFaceError", "No face was found in Photo 1: use another.")
    broken = JobError("RuntimeError", "it broke")
    server.fail = lambda prompt, time: {2: no_face, 1: broken}.get(seed_of(prompt))
    assert main([*command(server, seeds="1-3"), "--tries", "2"]) == 1
    assert sorted(server.ran.values()) == [1] * 4 + [1] * 4 + [2] * 4  # without a face nothing is tried again
    said = capsys.readouterr().out
    assert "4 of 12 jobs are done" in said
    assert "4 failed: KSampler (12): No face was found in Photo 1: use another." in said
    assert "4 failed: KSampler (12): it broke" in said
    with (tmp_path / "out" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "failed", "done"] * 4
    assert rows[0]["message"] == "KSampler (12): it broke" and rows[0]["file"] == ""
    server.fail = lambda prompt, time: None
    assert main(command(server, seeds="1-3")) == 0
    check(tmp_path / "out", seeds=3)


def test_a_workflow_that_the_server_refuses(server, command, tmp_path, capsys):
    workflow = WORKFLOW | {"20": {"class_type": "PulidModelLoader", "inputs": {}}}
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    assert main(command(server)) == 2
    said = capsys.readouterr()
    assert "hyperlora queue: No server is left" in said.err
    assert "doesn't accept the workflow: Node 'PulidModelLoader' not found." in said.err
    assert said.out.count("failed") == 3  # it isn't asked for every job


def test_a_job_that_the_server_refuses(server, command, capsys):
    server.refuse = lambda prompt: "seed is too large" if seed_of(prompt) == 2 else None
    assert main(command(server)) == 1
    assert "4 failed: Prompt outputs failed validation; LoadImage (4): " in capsys.readouterr().out


def test_another_server_takes_what_one_refuses(server, command, tmp_path):
    strict = FakeComfyUI(tmp_path / "strict")
    strict.refuse = lambda prompt: "this model isn't here"
    server.seconds = 0.1
    assert main(command(strict, server)) == 0
    strict.kill()
    check(tmp_path / "out")
    assert not strict.ran


def test_several_servers(server, command, tmp_path):
    other = FakeComfyUI(tmp_path / "other", seconds=0.1)
    server.seconds = 0.1
    assert main(command(server, other, seeds="1-4")) == 0
    other.kill()
    check(tmp_path / "out", seeds=4)
    ran_once(server, other, jobs=16)
    assert len(server.ran) >= 4 and len(other.ran) >= 4
    # each begins with a person of its own
    assert {fake.order[0]["4"]["inputs"]["image"] for fake in (server, other)} == {
        prompt["4"]["inputs"]["image"] for prompt in server.order + other.order
    }


def test_a_server_that_does_not_come_back(server, command, tmp_path, capsys):
    other = FakeComfyUI(tmp_path / "other", seconds=0.2)
    server.seconds = 0.1

    def kill_later() -> None:
        wait_for(lambda: other.ran)
        other.kill()

    killer = threading.Thread(target=kill_later)
    killer.start()
    assert main([*command(server, other, seeds="1-4"), "--patience", "1"]) == 0
    killer.join()
    check(tmp_path / "out", seeds=4)
    assert f"{other.url} didn't answer for 1 s" in capsys.readouterr().out


def test_the_only_server_goes(server, command, tmp_path, capsys):
    server.seconds = 0.1

    def kill_later() -> None:
        wait_for(lambda: len(list((tmp_path / "out").glob("*.png"))) >= 2)
        server.kill()

    killer = threading.Thread(target=kill_later)
    killer.start()
    assert main([*command(server), "--patience", "0.5"]) == 2
    killer.join()
    said = capsys.readouterr()
    assert (
        "No server is left" in said.err and "of 8 jobs are done" in said.err and "the same command goes on" in said.err
    )
    server.start()
    assert main(command(server)) == 0
    check(tmp_path / "out")
    assert "from earlier runs" in capsys.readouterr().out


def test_a_restart(server, command, tmp_path, capsys):
    """History, queue and cache are gone; only what ran or was not fetched runs again."""
    server.seconds = 0.1

    def restart() -> None:
        for pictures in (3, 8):
            wait_for(lambda pictures=pictures: len(list((tmp_path / "out").glob("*.png"))) >= pictures)
            server.kill()
            time.sleep(0.3)
            server.start()

    restarter = threading.Thread(target=restart)
    restarter.start()
    assert main(command(server, seeds="1-4")) == 0
    restarter.join()
    check(tmp_path / "out", seeds=4)
    assert sum(server.ran.values()) <= 16 + 2
    said = capsys.readouterr().out
    assert said.count("doesn't answer") == 2 and said.count("is back") == 2


def test_a_job_that_kills_the_server_is_given_up(server, command, tmp_path, capsys):
    def fail(prompt: dict, time: int) -> None:
        if seed_of(prompt) == 2:
            threading.Thread(target=crash).start()

    def crash() -> None:
        server.kill()
        server.start()

    server.fail, server.seconds = fail, 0.1
    # the crash comes while the job is said to be running, before its end is told
    original = server._execute

    async def execute(prompt_id: str, prompt: dict, client: str) -> dict:
        result = await original(prompt_id, prompt, client)
        if seed_of(prompt) == 2:
            await asyncio.sleep(60)
        return result

    server._execute = execute
    assert main([*command(server), "--tries", "2"]) == 1
    assert "4 failed: The server stopped while this ran." in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_somebody_clears_the_queue(server, command, tmp_path):
    server.seconds = 0.1

    def clear() -> None:
        wait_for(lambda: len(server.ran) >= 2)
        body = json.dumps({"clear": True}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/queue", body, method="POST")).close()

    clearer = threading.Thread(target=clear)
    clearer.start()
    assert main(command(server)) == 0
    clearer.join()
    check(tmp_path / "out")
    ran_once(server, jobs=8)


def test_killed_twice(server, command, tmp_path):
    """SIGKILL, with jobs on the server: they are fetched, not repeated."""
    server.seconds = 0.15
    for pictures in (2, 6):
        with started(command(server, seeds="1-4")) as process:
            wait_for(lambda pictures=pictures: len(list((tmp_path / "out").glob("*.png"))) >= pictures)
            process.kill()
    assert len(list((tmp_path / "out").glob("*.png"))) < 16
    assert main(command(server, seeds="1-4")) == 0
    check(tmp_path / "out", seeds=4)
    ran_once(server, jobs=16)


def test_killed_and_the_journal_lost(server, command, tmp_path):
    """What waits and runs on the server is known again by its content."""
    server.seconds = 0.5
    with started(command(server)) as process:
        wait_for(lambda: (tmp_path / "out" / names()[0]).exists() and len(server.ids()) == 3)
        process.kill()
    (tmp_path / "out" / "journal.jsonl").unlink()
    assert main(command(server)) == 0
    check(tmp_path / "out")
    ran_once(server, jobs=8)
    assert server.call(lambda: server.number) == 8


def test_killed_with_several_servers(server, command, tmp_path):
    """What is on one server isn't given to the other, whichever answers first."""
    other = FakeComfyUI(tmp_path / "other", seconds=1)
    server.seconds = 0.1
    with started(command(server, other)) as process:
        wait_for(lambda: len(list((tmp_path / "out").glob("*.png"))) >= 5)
        process.kill()
    assert other.ids() and not server.ids()
    other.hesitate = 0.5
    assert main(command(server, other)) == 0
    assert sum(fake.call(lambda fake=fake: fake.number) for fake in (server, other)) == 8
    other.kill()
    check(tmp_path / "out")
    ran_once(server, other, jobs=8)


def post(server: FakeComfyUI, seed: int) -> str:
    """Somebody else's job."""
    workflow = {node: spec for node, spec in WORKFLOW.items() if node != "4"}
    workflow["12"] = {"class_type": "KSampler", "inputs": {"seed": seed}}
    body = json.dumps({"prompt": workflow, "client_id": "somebody else"}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/prompt", body, method="POST")) as answer:
        return json.load(answer)["prompt_id"]


@pytest.mark.skipif(os.name == "nt", reason="no signals to send")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(server, command, tmp_path, number):
    """Ctrl-C: nothing of ours stays in the queue, everything of others does."""
    server.seconds = 0.5
    with started(command(server)) as process:
        wait_for(lambda: server.ran and len(server.ids()) >= 3)
        others = [post(server, seed) for seed in (1001, 1002)]
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "nothing is left in the queue" in said and "Traceback" not in said
    assert server.call(lambda: [item[1] for item in server.queue if item[1] not in others]) == []
    assert len(server.interrupted) == 1 and server.interrupted[0] not in (None, *others)
    wait_for(lambda: not server.ids())
    assert all(server.call(lambda id=id: server.history[id]["status"]["completed"]) for id in others)
    server.seconds = 0
    assert main(command(server)) == 0
    check(tmp_path / "out")


def test_similarity_in_the_index(server, command, tmp_path):
    meter = {"class_type": "HyperLoRASimilarity", "inputs": {"images": ["12", 0]}}
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW | {"15": meter}))
    assert main(command(server)) == 0
    assert {row["similarity"] for row in check(tmp_path / "out")} == {"0.63"}


def test_several_pictures_of_a_job(server, command, tmp_path):
    second = {"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": "second"}}
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW | {"16": second}))
    assert main(command(server, seeds="1")) == 0
    files = [row["file"] for row in csv.DictReader((tmp_path / "out" / "index.csv").read_text().splitlines())]
    assert files[:3] == ["anna_p01_s1_1.png", "anna_p01_s1_2.png", "anna_p02_s1_1.png"] and len(files) == 8
    assert all((tmp_path / "out" / file).exists() for file in files)


def test_a_workflow_of_which_the_server_ignores_a_part(server, command, capsys):
    """It says so in an answer that otherwise looks like success."""
    reasons = [{"message": "Value not in list", "details": "ckpt_name: x not in []"}]
    server.ignore = lambda prompt: {"20": {"class_type": "CheckpointLoaderSimple", "errors": reasons}}
    server.seconds = 0.1
    assert main(command(server)) == 2
    assert "CheckpointLoaderSimple (20): Value not in list: ckpt_name: x not in []" in capsys.readouterr().err
    wait_for(lambda: not server.ids())


def test_progress(server, tmp_path):
    told = []

    class Teller(Watch):
        def progress(self, server: str, job: Job, node: str, value: float, total: float) -> None:
            told.append((server, job.name, node, value, total))

    place = Inputs([], [], [Input("12", "seed")])
    (server.folder / "input" / "x.png").write_text("there already")
    jobs = plan_jobs(WORKFLOW, place, seeds=[1, 2])
    asyncio.run(run_queue(WORKFLOW, place, jobs, [server.url], tmp_path / "out", watch=Teller()))
    assert [one for one in told if one[1] == "s2"] == [(server.url, "s2", "KSampler", step, 4) for step in range(4)]


def test_seeds_alone(server, tmp_path, capsys):
    """Whatever doesn't vary stays as it is."""
    (server.folder / "input" / "x.png").write_text("there already")
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))
    out = tmp_path / "out"
    assert (
        main(["queue", str(tmp_path / "w.json"), "--seeds", "5,7", "--out", str(out), "--server", server.url[7:]]) == 0
    )
    assert sorted(path.name for path in out.glob("*.png")) == ["s5.png", "s7.png"]
    assert [prompt["8"]["inputs"]["prompt"] for prompt in server.order] == ["x", "x"]
    assert main(["queue", str(tmp_path / "w.json"), "--out", str(out)]) == 2
    assert "Nothing varies" in capsys.readouterr().err


def test_no_server(command, tmp_path, capsys, server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.port, port = free.getsockname()[1], server.port
    line = command(server)
    server.port = port
    assert main([*line, "--patience", "0.3"]) == 2
    said = capsys.readouterr()
    assert "doesn't answer" in said.out and "No server is left" in said.err
    for address in ("ftp://x", "http://", "http://x:port", "http://x y"):
        assert main([*line, "--server", address]) == 2
        assert f'"{address}" isn\'t the address of a server' in capsys.readouterr().err


def test_another_kind_of_server(command, capsys, tmp_path):
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_) -> None:
            pass

    other = HTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    line = command()
    assert main([*line, f"http://127.0.0.1:{other.server_port}"]) == 2
    other.shutdown()
    assert "is it a ComfyUI server?" in capsys.readouterr().err


def test_a_full_disk(server, command, tmp_path, monkeypatch, capsys):
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.parent == tmp_path / "out":
            raise OSError(28, "No space left on device")
        return write(path, content)

    server.seconds = 0.1
    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(command(server)) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    wait_for(lambda: not server.ids())
    assert main(command(server)) == 0
    check(tmp_path / "out")


def doc_code(heading: str) -> str:
    text = (ROOT / "docs" / "queue.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    return text.partition("```python\n")[2].partition("```")[0]


def test_ten_lines_of_plain_http(server, tmp_path, monkeypatch):
    """As the page has them, but for the address and the folder."""
    (server.folder / "input" / "hyperlora_demo_person.png").write_text("a photo")
    lines = doc_code("With a client of your own")
    assert len([line for line in lines.splitlines() if line and not line.startswith("import")]) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    workflow = ROOT / "workflows" / "api" / "demo.json"
    exec(lines.replace("http://127.0.0.1:8188", server.url).replace("workflows/api/demo.json", str(workflow)), {})
    assert [path.name for path in tmp_path.glob("*.png")] == ["hyperlora_demo_00001_.png"]
    assert seed_of(server.order[0]) == 7


def test_the_example_in_python(server, command, tmp_path, monkeypatch, capsys):
    command(server)
    monkeypatch.chdir(tmp_path)
    workflow = ROOT / "workflows" / "api" / "demo.json"
    code = doc_code("From Python").replace("http://127.0.0.1:8188", server.url)
    exec(code.replace("workflows/api/demo.json", str(workflow)), {})
    assert capsys.readouterr().out == "4 {} out/index.csv\n"
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_it_starts_without_torch(server, command, tmp_path):
    code = (
        "import sys; from hyperlora_core.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'PIL', 'numpy', 'safetensors'} & sys.modules.keys(), 'heavy'; sys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", code, *command(server)]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    check(tmp_path / "out")


def test_without_aiohttp(server, command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for name in ("client", "run", "worker"):
        monkeypatch.delitem(sys.modules, f"hyperlora_core.queue.{name}", raising=False)
    assert main(command(server)) == 2
    assert "needs aiohttp" in (said := capsys.readouterr().err) and "pip install aiohttp" in said
