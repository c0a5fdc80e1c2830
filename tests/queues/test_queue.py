"""A queue against a stand-in server: every picture once, whatever is added, deleted or varied."""

import asyncio
import csv
import hashlib
import json
import os
import subprocess
import sys
import time

from places import ROOT
from queue_runs import WORKFLOW, check, ran_once, seed_of

from hyperlora_core.cli import main
from hyperlora_core.queue.jobs import Inputs, Job, plan_jobs
from hyperlora_core.queue.run import run_queue
from hyperlora_core.queue.watch import Watch
from hyperlora_core.queue.workflow import Input


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


def test_a_photo_of_this_name_on_the_server_is_left_alone(server, command, tmp_path):
    digest = hashlib.sha256(b"photo of anna").hexdigest()[:32]
    there = server.folder / "input" / "hyperlora_queue" / f"{digest}.png"
    there.parent.mkdir()
    there.write_text("an upload that broke off")
    assert main(command(server)) == 0
    assert there.read_text() == "an upload that broke off"
    assert f"hyperlora_queue/{digest} (1).png" in {prompt["4"]["inputs"]["image"] for prompt in server.order}


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


def test_numbered_pictures_are_not_another_job_s(server, command, tmp_path):
    """anna's first picture isn't what a person called anna_1 gets, in the same run or a later one."""
    second = {"class_type": "SaveImage", "inputs": {"images": ["12", 0], "filename_prefix": "second"}}
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW | {"16": second}))
    photos, out = tmp_path / "people", tmp_path / "out"
    command(server)
    run = ["queue", str(tmp_path / "workflow.json"), "--photos", str(photos), "--out", str(out), "--server", server.url]

    def pictures(*people: str) -> dict[str, bytes]:
        photos.mkdir(exist_ok=True)
        for name in people:
            (photos / f"{name}.png").write_text(f"photo of {name}")
        assert main(run) == 0
        return {path.name: path.read_bytes() for path in out.glob("*.png")}

    there = pictures("anna", "anna_1_1", "Anna_2")
    assert sorted(there) == [
        *("Anna_2_1.png", "Anna_2_2.png", "anna_1.png", "anna_1_1_1.png", "anna_1_1_2.png", "anna_2_v2.png")
    ]
    (out / "anna_2_v2.png").unlink()
    later = pictures("anna_1")  # a person whose name is the first picture's, and whose first is called after another
    assert there.items() <= later.items()
    assert sorted(later.keys() - there.keys()) == ["anna_1_v2_1.png", "anna_1_v2_2.png"]


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
