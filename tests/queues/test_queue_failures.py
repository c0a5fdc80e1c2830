"""A queue when something goes wrong: failures, refusals, kills and restarts, and that no picture is lost or made twice."""

import asyncio
import csv
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fake_comfyui import FakeComfyUI, JobError
from queue_runs import WORKFLOW, check, names, post, ran_once, seed_of, started, wait_for

from hyperlora_core.cli import main


def test_a_lost_journal(server, command, tmp_path):
    """What the server's history holds is fetched; for another folder it is made again."""
    assert main(command(server)) == 0
    (tmp_path / "out" / "journal.jsonl").unlink()
    assert main(command(server)) == 0
    ran_once(server, jobs=8)
    assert server.call(lambda: server.number) == 8  # nothing was sent again
    assert main(command(server, out="other")) == 0
    check(tmp_path / "other")
    assert server.call(lambda: server.number) == 16


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


def test_a_photo_that_is_too_large_for_the_server(server, command, capsys):
    """It costs its person's jobs, not the server."""
    seen = []
    server.too_large = lambda name: seen.append(name) or name == seen[0]
    assert main(command(server)) == 1
    said = capsys.readouterr().out
    assert "4 of 8 jobs are done" in said and "isn't taken by" in said and "HTTP 413" in said
    server.too_large = None
    assert main(command(server)) == 0


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


def test_a_workflow_of_which_the_server_ignores_a_part(server, command, capsys):
    """It says so in an answer that otherwise looks like success."""
    reasons = [{"message": "Value not in list", "details": "ckpt_name: x not in []"}]
    server.ignore = lambda prompt: {"20": {"class_type": "CheckpointLoaderSimple", "errors": reasons}}
    server.seconds = 0.1
    assert main(command(server)) == 2
    assert "CheckpointLoaderSimple (20): Value not in list: ckpt_name: x not in []" in capsys.readouterr().err
    wait_for(lambda: not server.ids())


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
