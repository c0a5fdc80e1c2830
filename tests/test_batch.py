"""Many people at once: what is written, what is told, and what stopping, killing and changed photos do to it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bad_inputs import HTML, assert_sentence
from people import photo_of, side_by_side
from places import ROOT
from safetensors import safe_open

from hyperlora_core import EncodeOptions, HyperLoRAError, Identity, load_hyperlora, load_lora, open_encoder
from hyperlora_core.batch.faces import FaceReader, Look, Wanted
from hyperlora_core.batch.journal import FOLDER, IDENTITIES, KINDS, LORAS, output_path
from hyperlora_core.batch.people import NAME_BYTES, Person, file_names, list_people
from hyperlora_core.batch.workers import ATTEMPTS, Workers
from hyperlora_core.cli import main
from hyperlora_core.locate import DEMO_FACES, demo_folder

DONE = ("anna", "berta", "berta.png", "carl", "pair")
FILES = {name: name for name in DONE} | {"berta.png": "berta_2"}
FAILED = ("dora", "empty")
QUICK = ("--checkpoint", "demo", "--provider", "cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[Path]:
    """A photo each of four people, and another of the first."""
    folder = tmp_path_factory.mktemp("drawn")
    files = []
    for number, scene in ((0, 0), (1, 1), (2, 2), (3, 3), (0, 5)):
        files.append(folder / f"{number}_{scene}.png")
        photo_of(number, scene).save(files[-1])
    return files


@pytest.fixture(scope="module")
def crowd(drawn, tmp_path_factory) -> Path:
    """A folder of people; one stands on a photo with another, some photos are broken, some people have no photo that isn't."""
    folder = tmp_path_factory.mktemp("crowd")
    for file, source in {
        "anna/1.png": drawn[0],
        "anna/holiday/2.png": drawn[4],
        "anna/notes.txt": None,
        "berta/1.png": drawn[1],
        "berta.png": drawn[2],
        "carl/1.png": drawn[3],
        "carl/broken.jpg": None,
        "dora/broken.png": None,
        "empty/notes.txt": None,
        ".hidden/1.png": drawn[0],
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if source is None:
            (folder / file).write_text(HTML)
        else:
            shutil.copy(source, folder / file)
    (folder / "pair").mkdir()
    side_by_side(photo_of(2, 7), photo_of(1, 7)).save(folder / "pair" / "1.png")
    return folder


@pytest.fixture(scope="module")
def finished(crowd, tmp_path_factory) -> tuple[Path, int]:
    """What a batch of the crowd writes, and its exit status."""
    out = tmp_path_factory.mktemp("batch") / "out"
    return out, main([*command(crowd, out), "--workers", "2", "--group", "3", "--which", "right"])


@pytest.fixture
def copied(crowd, finished, tmp_path) -> tuple[Path, Path]:
    """Photos and results of that batch, to be changed."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(crowd, photos)
    shutil.copytree(finished[0], out)
    return photos, out


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return ["batch", str(photos), "--out", str(out), *QUICK, "--workers", "1", *more]


def report(out: Path) -> dict[str, dict[str, str]]:
    with (out / "report.csv").open(encoding="utf-8", newline="") as file:
        return {row["person"]: row for row in csv.DictReader(file)}


def files(out: Path) -> dict[str, int]:
    """Every result and when it was written."""
    return {f"{kind}/{file.name}": file.stat().st_mtime_ns for kind in KINDS for file in (out / kind).iterdir()}


def written(out: Path, before: dict[str, int]) -> set[str]:
    """What is new or written anew."""
    return {file for file, moment in files(out).items() if before.get(file) != moment}


def both(*names: str) -> set[str]:
    return {f"{kind}/{name}.safetensors" for kind in KINDS for name in names}


def done_since(out: Path, run: int) -> list[str]:
    """People whom the journal names from that run on."""
    parts = [part for part in sorted((out / FOLDER).glob("*.jsonl")) if int(part.name[:6]) >= run]
    return [json.loads(line)["person"] for part in parts for line in part.read_text().splitlines()]


def test_everybody_gets_what_they_would_get_alone(crowd, finished):
    out, status = finished
    assert status == 1  # some failed
    assert set(files(out)) == both(*FILES.values())
    encoder = open_encoder("demo", provider="cpu")
    for name, photos in {
        "anna": ("anna/1.png", "anna/holiday/2.png"),
        "berta_2": ("berta.png",),
        "carl": ("carl/1.png",),
        "pair": ("pair/1.png",),
    }.items():
        wanted = encoder.encode([crowd / photo for photo in photos], EncodeOptions("right")).identity
        identity = Identity.load(output_path(out, IDENTITIES, name))
        identity.require_checkpoint(encoder.hyper)
        assert identity.photo_count == len(photos)
        assert (identity.coefficients - wanted.coefficients).norm() <= 2e-3 * wanted.coefficients.norm(), name
        assert (identity.base_coefficients - wanted.base_coefficients).norm() <= 2e-3 * wanted.base_coefficients.norm()
        lora, alone = load_lora(output_path(out, LORAS, name)), encoder.hyper.lora(wanted.coefficients)
        for key, tensor in lora.items():
            assert (tensor.float() - alone[key]).norm() <= 5e-3 * alone[key].norm(), key
    with safe_open(output_path(out, LORAS, "anna"), framework="pt") as file:
        assert file.metadata()["modelspec.title"] == "anna"
        assert file.metadata()["hyperlora.photo_count"] == "2"


def test_report_tells_of_every_person(finished):
    rows = report(finished[0])
    assert sorted(rows) == sorted((*DONE, *FAILED))
    for name in DONE:
        assert (rows[name]["status"], rows[name]["file"]) == ("done", FILES[name])
    assert (rows["carl"]["photos"], rows["carl"]["photos used"], rows["carl"]["photos failed"]) == ("2", "1", "1")
    assert_sentence(rows["carl"]["why"], ("broken.jpg", "isn't a picture"))
    assert (rows["dora"]["status"], rows["dora"]["photos used"], rows["dora"]["file"]) == ("failed", "0", "")
    assert_sentence(rows["dora"]["why"], ("broken.png", "isn't a picture"))
    assert_sentence(rows["empty"]["why"], ("empty", "no photo"))
    assert "berta_2" in rows["berta.png"]["note"] and not rows["berta"]["note"]


def test_the_same_again_does_nothing(crowd, finished, capsys):
    out, before = finished[0], files(finished[0])
    assert main([*command(crowd, out), "--which", "right"]) == 1
    assert written(out, before) == set()
    said = capsys.readouterr()
    assert "5 of 7 people" in said.out and "5 of them from earlier runs" in said.out and "2 failed" in said.out
    assert "'berta_2'" in said.out and str(out / "report.csv") in said.out
    assert done_since(out, 2) == []


def test_only_changed_photos_are_done_again(copied, drawn):
    photos, out = copied
    before = files(out)
    old = Identity.load(output_path(out, IDENTITIES, "berta"))
    shutil.copyfile(drawn[3], photos / "berta" / "1.png")
    (photos / "fred").mkdir()
    shutil.copy(drawn[1], photos / "fred")
    (photos / "carl" / "1.png").unlink()  # the broken one is left
    assert main([*command(photos, out), "--which", "right"]) == 1
    assert sorted(done_since(out, 2)) == ["berta", "carl", "fred"]
    assert written(out, before) == both("berta", "fred")
    new = Identity.load(output_path(out, IDENTITIES, "berta"))
    carl = Identity.load(output_path(out, IDENTITIES, "carl"))  # of the same photo as berta now
    assert (new.coefficients - carl.coefficients).norm() < 1e-2 * new.coefficients.norm()
    assert (new.coefficients - old.coefficients).norm() > 0.02 * new.coefficients.norm()
    rows = report(out)
    assert (rows["carl"]["status"], rows["carl"]["note"]) == ("failed", "carl is of earlier photos")
    assert rows["fred"]["status"] == "done"


def test_only_missing_files_are_written_again(copied):
    photos, out = copied
    output_path(out, LORAS, "anna").unlink()  # to be mixed from the identity
    output_path(out, LORAS, "carl").write_bytes(b"")  # as after a power failure
    output_path(out, IDENTITIES, "carl").write_bytes(b"spoiled")
    before = files(out)
    assert main([*command(photos, out), "--which", "right"]) == 1
    assert written(out, before) == {f"{LORAS}/anna.safetensors", *both("carl")}
    Identity.load(output_path(out, IDENTITIES, "carl"))
    load_lora(output_path(out, LORAS, "anna"))


def test_retry_and_identities_alone(crowd, tmp_path, capsys, monkeypatch):
    photos, out = tmp_path / "photos", tmp_path / "photos" / "out"  # results among the people are nobody
    for name in ("anna", "dora"):
        shutil.copytree(crowd / name, photos / name)
    for retry in ([], ["--retry"]):
        assert main([*command(photos, out), "--write", "identities", *retry]) == 1
    assert done_since(out, 1) == ["anna", "dora", "dora"]
    assert sorted(path.name for path in out.iterdir()) == [IDENTITIES, FOLDER, "report.csv"]
    assert "1 of 2 people" in capsys.readouterr().out
    # LoRAs are added without looking at any photo
    monkeypatch.setattr(Workers, "_start", None)
    before = output_path(out, IDENTITIES, "anna").stat().st_mtime_ns
    assert main(command(photos, out)) == 1
    assert output_path(out, IDENTITIES, "anna").stat().st_mtime_ns == before
    load_lora(output_path(out, LORAS, "anna"))


def test_base_branch_joined_in_diffusers_naming(drawn, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    shutil.copy(drawn[0], photos / "anna.png")
    assert main([*command(photos, out), "--write", "loras", "--base-weight", "0.4", "--naming", "diffusers"]) == 0
    with safe_open(output_path(out, LORAS, "anna"), framework="pt") as file:
        names = list(file.keys())
        assert file.metadata()["hyperlora.base_weight"] == "0.4"
        assert file.get_tensor(names[0]).shape[0] == 8 + 4 or file.get_tensor(names[0]).shape[1] == 8 + 4
    assert all(name.startswith("unet.") for name in names)
    assert not (out / IDENTITIES).exists()


def test_mistakes(crowd, finished, tmp_path, capsys):
    (tmp_path / "nobody").mkdir()
    (tmp_path / "foreign" / LORAS).mkdir(parents=True)
    (tmp_path / "foreign" / LORAS / "mine.safetensors").touch()
    out = tmp_path / "out"
    for arguments, words in (
        (command(tmp_path / "nowhere", out), ("nowhere", "can't be read")),
        (command(tmp_path / "nobody", out), ("nobody", "no folders and no photos")),
        (command(crowd, finished[0]), (str(finished[0]), "other settings", "which: right there, largest now")),
        (command(crowd, tmp_path / "foreign"), (str(tmp_path / "foreign" / LORAS), "choose a new folder")),
        (command(crowd, out, "--group", "0"), ("--group 1 or more",)),
        (command(crowd, out, "--base-weight", "nan"), ("aren't numbers",)),
        (command(crowd, out, "--provider", "quantum"), ('"quantum" isn\'t a provider',)),
        (command(crowd, out, "--workers", "0"), ("--workers 1 or more",)),
    ):
        assert main(arguments) == 2, arguments
        assert_sentence(capsys.readouterr().err, ("hyperlora batch:", *words))
    for arguments in (("--write", "poems"), ("--which", "prettiest")):
        with pytest.raises(SystemExit) as stop:
            main(command(crowd, out, *arguments))
        assert stop.value.code == 2 and repr(arguments[1]) in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither of the signals")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_stopped_halfway(drawn, tmp_path, sent):
    """Nobody is repeated, nobody is lost, nothing is half-written, and no process stays."""
    photos, out, count = tmp_path / "photos", tmp_path / "out", 40
    for number in range(count):
        (photos / f"person_{number}").mkdir(parents=True)
        shutil.copy(drawn[number % 4], photos / f"person_{number}")
    process = subprocess.Popen(
        [sys.executable, "-m", "hyperlora_core", *command(photos, out, "--group", "1")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background job (nohup, a CI runner) ignores Ctrl-C, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not output_path(out, LORAS, "person_2").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    if sent is signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all processes
    said = process.communicate(timeout=120)[1]  # ends when the last process that holds stderr does
    before = files(out)
    whole = {name for name in both(*(f"person_{number}" for number in range(count))) if name in before}
    assert 6 <= len(whole) < 2 * count, said
    if sent is signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in said and "The same command goes on" in said
        assert set(before) == whole
        assert {row["status"] for row in report(out).values()} == {"done", "waiting"}
    (out / LORAS / ".person_39.safetensors.abcdefgh.part").touch()  # as a kill in the midst of writing leaves it
    assert main(command(photos, out)) == 0
    assert set(files(out)) == both(*(f"person_{number}" for number in range(count)))
    assert written(out, before) == set(files(out)) - whole
    for number in range(count):
        identity = Identity.load(output_path(out, IDENTITIES, f"person_{number}"))
        alike = Identity.load(output_path(out, IDENTITIES, f"person_{number % 4}"))
        assert (identity.coefficients - alike.coefficients).norm() < 1e-2 * identity.coefficients.norm()
        load_lora(output_path(out, LORAS, f"person_{number}"))


class Deadly(str):
    """A photo's path that ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_photo_that_ends_its_process_costs_only_itself(drawn):
    photos = [str(drawn[0]), Deadly("deadly.png"), str(drawn[1])]
    with Workers(1, demo_folder() / DEMO_FACES, "cpu", Wanted(EncodeOptions(), 64)) as workers:
        first, deadly, last = workers.look(photos, 2)
    assert_sentence(deadly, ("deadly.png", f"{ATTEMPTS} times"))
    for look in (first, last):
        assert isinstance(look, Look) and look.identity.shape == look.base.shape == (64, 64, 3)
    assert not any(process.is_alive() for process in workers._processes)


def test_another_library_s_error_is_the_photo_s(drawn):
    class Broken:
        def face(self, *_):
            raise RuntimeError("resize.cpp:4152: error\n(-215:Assertion failed) !dsize.empty()")

    said = FaceReader(Broken(), Wanted(EncodeOptions()))(str(drawn[0]))
    assert_sentence(said, (str(drawn[0]), "RuntimeError: (-215:Assertion failed)", "save it anew"))


def test_a_bad_face_pack_is_told(drawn, tmp_path):
    with Workers(1, tmp_path, "cpu", Wanted(EncodeOptions(), 64)) as workers, pytest.raises(HyperLoRAError) as error:
        list(workers.look([str(drawn[0])], 2))
    assert_sentence(str(error.value), (str(tmp_path),))


def test_loras_of_many_are_those_of_each(golden):
    hyper = load_hyperlora(golden)
    shape = (3, 8 * len(hyper.module_names), hyper.basis.size)
    people = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for branch in ("id", "base") if hyper.has_base else ("id",):
        for lora, coefficients in zip(hyper.loras(people, branch), people, strict=True):
            alone = hyper.lora(coefficients, branch)
            assert list(lora) == list(alone)
            for key, tensor in lora.items():
                torch.testing.assert_close(tensor, alone[key], rtol=1e-5, atol=1e-6)
                # owned, or one person's LoRA would hold the memory of all
                assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    for wrong in (people[0], people[:, 1:], torch.full_like(people, float("nan"))):
        with pytest.raises(HyperLoRAError):
            hyper.loras(wrong)


def person(name: str) -> Person:
    return Person(name, (), "")


def test_names_of_files():
    names = [
        "Anna",
        "anna",
        "a:b",
        "a_b",
        "con",
        "nul.txt",
        " .",
        "x" * 400,
        "x" * 401,
        "\udcff",
        "J\u00f6rg",
        "Jo\u0308rg",
    ]
    files = file_names(map(person, names), {})
    assert sorted(files) == sorted(names)
    assert len({file.casefold() for file in files.values()}) == len(names)
    assert files["a_b"] == "a_b" and files["a:b"] == "a_b_2"
    assert files["Anna"] == "Anna" and files["anna"] == "anna_2"
    assert files["con"] == "con_" and files["nul.txt"] == "nul.txt_"
    for file in files.values():
        assert (
            file
            and len(file.encode()) <= NAME_BYTES + 2
            and file == file.strip(" .")
            and not set(file) & set('<>:"/\\|?*')
        )
    # names that are there already stay, also when others come that have more right to them
    known = {"a:b": "a_b", "gone": "Anna"}
    files = file_names(map(person, ["a_b", "a:b", "anna"]), known)
    assert (files["a:b"], files["a_b"], files["anna"]) == ("a_b", "a_b_2", "anna_2")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_in_a_circle_and_to_nothing(drawn, tmp_path):
    (tmp_path / "anna").mkdir()
    shutil.copy(drawn[0], tmp_path / "anna" / "1.png")
    (tmp_path / "anna" / "round").symlink_to(tmp_path / "anna")
    (tmp_path / "anna" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    (anna,) = list_people(tmp_path)
    assert [Path(photo).name for photo in anna.photos] == ["1.png", "lost.png"]
    os.utime(tmp_path / "anna" / "1.png", ns=(0, 0))
    assert list_people(tmp_path)[0].digest != anna.digest
