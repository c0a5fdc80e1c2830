"""Files appear whole or not at all."""

import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from places import ROOT

from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.files import first_written, free_name, numbered, written_aside


def test_written_whole(tmp_path):
    with written_aside(tmp_path / "new" / "a.txt") as aside:
        aside.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"
    assert os.listdir(tmp_path / "new") == ["a.txt"]


@pytest.mark.parametrize("links", [True, False])
def test_the_first_of_several_processes_wins(tmp_path, monkeypatch, links):
    """What it wrote may be mapped by now: another's file under its name would leave it with one that nobody sees."""
    if not links:

        def refuse(*_):
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new" / "a.txt"
    with first_written(path) as aside, first_written(path) as other:
        aside.write_text("second")
        other.write_text("first")
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["a.txt"]


def test_failure_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), written_aside(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        raise KeyError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


FULL_DISK = """
import resource, signal, sys
sys.path.append(sys.argv[1])
import torch
from hyperlora_core import Identity
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with an error instead of ending the process
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
Identity(torch.zeros(1120, 128)).save(sys.argv[2])
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_no_room_for_the_file(tmp_path):
    """A full disk, imitated by the system's limit on file sizes: a sentence, and nothing half-written."""
    path = tmp_path / "anna.safetensors"
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(ROOT), str(path)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "HyperLoRAError: Can't write" in run.stderr and "nothing was changed" in run.stderr, run.stderr
    assert os.listdir(tmp_path) == []


def test_free_name(tmp_path):
    path = tmp_path / "new" / "anna.safetensors"
    for name in ("anna", "anna_2", "anna_3"):
        with free_name(numbered(path)) as free:
            assert free.stem == name and free.stat().st_size == 0, "nobody else's now"
            with free_name(numbered(path)) as another:
                assert another != free
            another.unlink()
            free.write_text(name)
    with pytest.raises(ValueError), free_name(numbered(path)) as free:
        raise ValueError
    assert sorted(file.stem for file in path.parent.iterdir()) == ["anna", "anna_2", "anna_3"]
    with pytest.raises(HyperLoRAError, match="Can't write"), free_name(numbered(path / "below_a_file.txt")):
        pass


def save_many(path, times):
    for _ in range(times):
        with free_name(numbered(path)) as free, written_aside(free) as aside:
            aside.write_text("a person")


def test_processes_that_save_under_one_name_lose_nobody(tmp_path):
    path = tmp_path / "anna.txt"
    with ProcessPoolExecutor(3) as pool:
        for done in [pool.submit(save_many, path, 20) for _ in range(3)]:
            done.result()
    assert len(list(tmp_path.glob("anna*.txt"))) == 60


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HyperLoRAError, match="Can't write"), written_aside(tmp_path / "file" / "a.txt"):
        pass
