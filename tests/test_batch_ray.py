"""Many people on Ray, started on this machine: the same files as without it."""

import shutil

import pytest
from bad_inputs import HTML, assert_sentence
from people import photo_of

from hyperlora_core import Identity, load_lora
from hyperlora_core.cli import main

pytest.importorskip("ray", reason='NOT TESTED: hyperlora batch --ray, since Ray is not here (pip install "ray[data]")')


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        (folder / f"person_{number}").mkdir()
        for scene in range(1 + number):
            photo_of(number, scene).save(folder / f"person_{number}" / f"{scene}.png")
    (folder / "person_0" / "broken.png").write_text(HTML)
    (folder / "nobody").mkdir()
    (folder / "nobody" / "broken.png").write_text(HTML)
    return folder


def test_ray_writes_what_one_machine_writes(photos, tmp_path, capsys):
    alone, together = tmp_path / "alone", tmp_path / "together"
    command = ["batch", str(photos), "--checkpoint", "demo", "--provider", "cpu", "--workers", "1", "--group", "2"]
    assert main([*command, "--out", str(alone)]) == 1
    assert main([*command, "--out", str(together), "--ray", "local"]) == 1
    assert "3 of 4 people" in capsys.readouterr().out
    assert (together / "report.csv").read_bytes() == (alone / "report.csv").read_bytes()
    results = sorted(file.relative_to(alone) for file in alone.rglob("*.safetensors"))
    assert len(results) == 6 and results == sorted(
        file.relative_to(together) for file in together.rglob("*.safetensors")
    )
    for file in results:
        if file.parts[0] == "identities":
            one, other = (Identity.load(folder / file).coefficients for folder in (alone, together))
            assert (one - other).norm() <= 2e-3 * one.norm()
        else:
            one, other = (load_lora(folder / file) for folder in (alone, together))
            assert all((one[key].float() - other[key].float()).norm() <= 5e-3 * one[key].norm() for key in one)

    # the next run goes on, wherever
    (together / "loras" / "person_1.safetensors").unlink()
    shutil.rmtree(photos / "nobody")
    before = {file: (together / file).stat().st_mtime_ns for file in results if (together / file).exists()}
    assert main([*command, "--out", str(together)]) == 0
    assert [file for file, moment in before.items() if (together / file).stat().st_mtime_ns != moment] == []
    assert (together / "loras" / "person_1.safetensors").exists()
    assert main([*command, "--out", str(together), "--ray", "local"]) == 0, "nothing is left to do"


def test_no_cluster_there(photos, tmp_path, capsys):
    assert main(["batch", str(photos), "--checkpoint", "demo", "--out", str(tmp_path), "--ray", "auto"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert_sentence(error, ("hyperlora batch: No Ray cluster answers at auto", "--ray local"))
