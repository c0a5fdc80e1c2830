"""`hyperlora prepare`: what is kept, what is rejected, stopping and going on, mistakes."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import HTML, assert_sentence, picture
from people import photo_of
from places import ROOT
from training_photos import BAD, CONFIG, FACES, SCENES, SHARD, contents, report_of, run, save

from hyperlora_core import HyperLoRAError
from hyperlora_core.cli import main
from hyperlora_core.train import photo_shards, prepare
from hyperlora_core.train.photo_rules import PhotoRules
from hyperlora_core.train.photos import PreparedPhotos

for package in ("insightface", "onnxruntime", "cv2"):
    pytest.importorskip(package)


def test_every_file_is_reported(photos, prepared):
    report = report_of(prepared)
    good = {f"people/{name}/{i}.jpg" for name in ("anna", "ben") for i in range(3)} | {"people/single.png"}
    assert {name for name, line in report.items() if line["verdict"] == "kept"} == good
    rejected = {name: line for name, line in report.items() if line["verdict"] == "rejected"}
    assert {name: line["reason"] for name, line in rejected.items()} == {name: why for name, (why, _) in BAD.items()}
    for name, (_, words) in BAD.items():
        assert words in rejected[name]["detail"], rejected[name]
    assert all(float(line["face"]) >= 60 and float(line["sharpness"]) > 0 for line in report.values() if line["face"])


def test_real_photographs(tmp_path):
    """The demo's face pack knows drawn faces only: whatever it sees in photographs, they go through all the same."""
    skimage, insightface = pytest.importorskip("skimage"), pytest.importorskip("insightface")
    astronaut = Path(skimage.__file__).parent / "data" / "astronaut.png"
    friends = Path(insightface.__file__).parent / "data" / "images" / "t1.jpg"
    save(photo_of(0), tmp_path / "photos" / "0.jpg")
    for photo in (astronaut, friends):
        shutil.copy(photo, tmp_path / "photos")
    summary = run(tmp_path / "photos", tmp_path / "out", replace(CONFIG, caption="a photo"))
    assert summary.kept + sum(summary.rejected.values()) == 3
    assert report_of(tmp_path / "out")["photos/t1.jpg"]["verdict"] == "rejected"


# --- stopped and resumed ---------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "looked_at, torn",
    [(1, "nothing"), (4, "nothing"), (1, "tails"), (12, "tails"), (4, "power cut"), (12, "power cut")],
)
def test_a_killed_run_goes_on_without_loss_or_repetition(photos, prepared, tmp_path, looked_at, torn):
    """What lies on disk at some moment is what a kill leaves; a kill in the middle of writing leaves more."""
    out, left = tmp_path / "out", tmp_path / "left"

    def progress(done, total, kept, rejected):
        if kept + rejected == looked_at:
            shutil.copytree(out, left, ignore=shutil.ignore_patterns(".lock"))
            raise Stop

    with pytest.raises(Stop):
        run(photos, out, progress=progress)
    assert not (left / "index.npy").exists()
    last = max(left.glob("*.part"), key=lambda path: path.name if "tar" in path.name else "")
    if torn == "tails":
        for path, tail in ((last, b"x" * 700), (left / "rows.part", b"y" * 50), (left / "report.csv", b"people/ann")):
            path.write_bytes(path.read_bytes() + tail)
    if torn == "power cut":
        for path in (last, left / "rows.part"):
            path.write_bytes(path.read_bytes()[:-600])
    before = len(report_of(left)) if torn == "nothing" else 0
    looks = []
    run(photos, left, progress=lambda *counts: looks.append(counts))
    assert contents(left) == contents(prepared)
    assert torn != "nothing" or len(looks) == len(report_of(prepared)) - before
    assert looks[-1][0] == looks[-1][1]  # all bytes that were left are done


def test_killed_at_any_moment(tmp_path, monkeypatch):
    """Before every single thing that is written, renamed or made to last."""
    crumb, face = b"x" * 100, {"face": 150, "yaw": 0, "roll": 0, "sharpness": 20}
    items = [
        prepare.Rejection(f"{i}.jpg", "no face", "")
        if i == 3
        else prepare.Sample(f"{i}.jpg", "ann", *[crumb * (i + 1)] * 3, np.ones(512), np.zeros(4), None, face)
        for i in range(7)
    ]
    left = None  # steps until the kill; None: none

    def counted(owner, name):
        original = getattr(owner, name)

        def step(*arguments):
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    raise Stop
            return original(*arguments)

        monkeypatch.setattr(owner, name, step)

    writer_class = photo_shards.ShardWriter
    for owner, name in [(writer_class, "_append"), (writer_class, "_note"), (writer_class, "_finish_shard"),
                        (photo_shards, "_sync"), (photo_shards.os, "replace")]:  # fmt: skip
        counted(owner, name)
    monkeypatch.setattr(photo_shards.os, "fsync", lambda _: None)  # slow, and no power is cut here

    def write(folder):
        with photo_shards.ShardWriter(folder, {}, 14_000) as writer:
            for item in items:
                if item.source not in writer.done:
                    writer.reject(item) if isinstance(item, prepare.Rejection) else writer.keep(item, "a person")
            writer.finish()
        return contents(folder)

    whole = write(tmp_path / "whole")
    assert sum(name.endswith(".tar") for name in whole) > 2
    for moment in range(1000):
        left = moment
        try:
            write(tmp_path / str(moment))
            break
        except Stop:
            left = None
            assert write(tmp_path / str(moment)) == whole, moment
    assert 40 < moment < 999


def test_rows_stand_in_the_order_of_the_input(monkeypatch):
    """Whatever the order in which the processes finish."""
    finished = []

    def examine(source):
        time.sleep(0 if int(source.name) % 4 else 0.05)
        finished.append(source)
        return source.name

    monkeypatch.setattr(prepare, "_examine", examine)
    sources = [prepare.Source(str(i), "ann", 1, None) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(prepare._in_order(pool, iter(sources), 8)) == [(source, source.name) for source in sources]
    assert finished != sources


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_two_processes_killed_for_good(photos, prepared, tmp_path):
    """kill -9 of the main process; two workers, of which none is left, write what one would have written."""
    out = tmp_path / "out"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in vars(CONFIG.rules).items()]
    command = [sys.executable, "-m", "hyperlora_core", "prepare", photos, "--out", out, "--people-folders", *options]
    command += ["--face-pack", FACES, "--provider", "cpu", "--shard-size", str(SHARD / 1e6), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if (out / "report.csv").exists() and len((out / "report.csv").read_bytes().splitlines()) > 3:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        # the pipes end when the last process that holds them has ended
        _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, said.decode()
    run(photos, out, workers=2)
    assert contents(out) == contents(prepared)


def test_more_photos_later(photos, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    more = tmp_path / "people"
    save(photo_of(5), more / "eve" / "0.jpg", "eve")
    summary = run(more, out)
    assert summary.kept == 8
    old, new = np.load(prepared / "index.npy"), np.load(out / "index.npy")
    assert (new[:7] == old).all() and PreparedPhotos(out).captions([7]) == ["eve"]
    before = contents(prepared)
    assert all(contents(out)[name] == data for name, data in before.items() if name.endswith(".tar"))
    run(photos, out)
    assert (np.load(out / "index.npy") == new).all()


def test_full_disk(photos, prepared, tmp_path, monkeypatch):
    out = tmp_path / "out"
    append, count = photo_shards.ShardWriter._append, iter(range(100))

    def full(self, name, data):
        if next(count) == 17:
            self._shard.write(data[:300])
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, name, data)

    monkeypatch.setattr(photo_shards.ShardWriter, "_append", full)
    with pytest.raises(HyperLoRAError) as error:
        run(photos, out)
    assert_sentence(str(error.value), ("photos-0000", "No space left", "it goes on"))
    monkeypatch.setattr(photo_shards.ShardWriter, "_append", append)
    run(photos, out)
    assert contents(out) == contents(prepared)


# --- shards as input -------------------------------------------------------------------------------------------------


def add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def jpeg(number: int, scene: int = SCENES[0]) -> bytes:
    file = io.BytesIO()
    photo_of(number, scene).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_shards_as_input(tmp_path):
    laion = tmp_path / "laion"
    laion.mkdir()
    with tarfile.open(laion / "00000.tar", "w") as shard:
        add(shard, "000.jpg", jpeg(0))
        add(shard, "000.txt", b"first")
        add(shard, "000.json", b'{"caption": "not this"}')
        add(shard, "001.json", b'{"caption": "second"}')
        add(shard, "001.jpg", jpeg(1))
        add(shard, "002.txt", b"a caption without a photo")
        add(shard, "deep/v1.2/003.JPG", jpeg(2))
        add(shard, "deep/v1.2/003.json", b'{"caption": 7}')
        add(shard, "004.jpg", HTML.encode())
    with tarfile.open(laion / "00001.tar", "w") as shard:
        for i in range(4):
            add(shard, f"{i}.jpg", jpeg(i, SCENES[1]))
            add(shard, f"{i}.txt", b"cut")
    whole = (laion / "00001.tar").read_bytes()
    (laion / "00001.tar").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(laion / "00002.tar.gz", "w:gz") as shard:
        add(shard, "0.jpg", jpeg(0))
    counts = []
    config = replace(CONFIG, people_folders=False)
    summary = run(laion, tmp_path / "out", config, progress=lambda *now: counts.append(now))
    report = report_of(tmp_path / "out")
    assert {name for name, line in report.items() if line["verdict"] == "kept"} >= {
        "laion/00000.tar/000", "laion/00000.tar/001", "laion/00001.tar/0"
    }  # fmt: skip
    assert report["laion/00000.tar/002"]["detail"] == "the sample holds no picture, only txt"
    assert report["laion/00000.tar/deep/v1.2/003"]["reason"] == "no caption"
    assert report["laion/00000.tar/004"]["detail"].endswith("a web page")
    assert "damaged at" in report["laion/00001.tar"]["detail"]
    assert "gunzip" in report["laion/00002.tar.gz"]["detail"]
    assert counts[-1] == (counts[-1][1], sum(path.stat().st_size for path in laion.iterdir()), summary.kept, 5)
    read = PreparedPhotos(tmp_path / "out")
    assert read.captions([0, 1]) == ["first", "second"] and len(set(read.people)) == len(read)
    # what comes out can go in again, by a pattern
    again = prepare.prepare_photos([str(tmp_path / "out" / "*.tar")], tmp_path / "again", FACES, config)
    assert again.kept >= 1 and PreparedPhotos(tmp_path / "again").captions([0]) == ["first"]


def test_people_in_shards(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as shard:
            add(shard, f"anna/{number}.jpg", jpeg(0, SCENES[number]))
            add(shard, f"ben/{number}.jpg", jpeg(1, SCENES[number]))
    config = replace(CONFIG, caption="a person")
    prepare.prepare_photos([tmp_path / "0.tar", tmp_path / "1.tar"], tmp_path / "out", FACES, config)
    people = PreparedPhotos(tmp_path / "out").people
    assert people[0] == people[2] != people[1] == people[3]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_other_options_need_another_folder(photos, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(HyperLoRAError) as error:
        run(photos, tmp_path / "out", replace(CONFIG, quality=90))
    assert_sentence(str(error.value), ("quality was 95, is 90", "--out"))
    assert contents(tmp_path / "out") == before


def test_one_writer_at_a_time(photos, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    told = json.loads((prepared / "config.json").read_text())
    told.pop("format")
    with (
        photo_shards.ShardWriter(tmp_path / "out", told, SHARD),
        pytest.raises(HyperLoRAError, match="another process"),
    ):
        run(photos, tmp_path / "out")


def test_nothing_usable(tmp_path):
    save(picture(), tmp_path / "photos" / "noise.png")
    for _ in range(2):
        with pytest.raises(HyperLoRAError) as error:
            run(tmp_path / "photos", tmp_path / "out")
        assert_sentence(str(error.value), ("None of the 1 photos", "no face", "report.csv"))
    with pytest.raises(HyperLoRAError, match="aren't all prepared"):
        PreparedPhotos(tmp_path / "out")


def test_mistakes(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    for folder in "ab":
        save(photo_of(0), tmp_path / folder / "x" / "0.jpg")
    for given, options, words in (
        ([tmp_path / "empty"], {}, ("empty", "holds no photos")),
        ([tmp_path / "nowhere"], {}, ("nowhere", "doesn't exist")),
        ([tmp_path / "a" / "x", tmp_path / "b" / "x"], {}, ("would both be called x/0.jpg",)),
        ([photos], {"workers": 0}, ("--workers 1",)),
        ([photos], {"config": replace(CONFIG, captions=("blip2",))}, ("--blip2 FOLDER",)),
    ):
        with pytest.raises(HyperLoRAError) as error:
            prepare.prepare_photos(given, tmp_path / "out", FACES, **{"config": CONFIG, **options})
        assert_sentence(str(error.value), words)
    with pytest.raises(HyperLoRAError, match="size 100"):
        PhotoRules(size=100)
    with pytest.raises(HyperLoRAError, match=r"holds no \.onnx files"):
        prepare.prepare_photos([photos], tmp_path / "out", tmp_path / "empty")
    # the folder that is written to is not read, even where it lies among the photos
    same = tmp_path / "a" / "x"
    assert [run(same, same / "out").kept for _ in range(2)] == [1, 1]


def test_command(tmp_path, capsys):
    two = tmp_path / "two"
    save(photo_of(0), two / "a.jpg", "told")
    save(photo_of(1), two / "b.jpg", None)
    command = ["prepare", str(two), "--out", str(tmp_path / "out"), "--face-pack", str(FACES), "--workers", "1"]
    command += ["--size", "128", "--min-face", "60", "--max-enlargement", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "1 of 2 photos prepared" in said and "1  no caption" in said and "report.csv" in said
    assert main([*command, "--caption", "a person"]) == 2
    assert_sentence(capsys.readouterr().err.splitlines()[-1], ("hyperlora prepare:", "prepared otherwise"))
    assert main([*command[:3], str(tmp_path / "other"), *command[4:], "--captions", "blip2"]) == 2
    assert "--blip2 FOLDER" in capsys.readouterr().err
    for wrong in (["--captions", "magic"], ["--quality", "0"]):
        with pytest.raises(SystemExit):
            main([*command, *wrong])
