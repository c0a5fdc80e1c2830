"""The command line, on the shipped demo models."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from bad_inputs import CHECKPOINTS, PHOTOS, assert_sentence, bad_checkpoint
from people import photo_of, side_by_side
from PIL import Image
from safetensors import safe_open

from hyperlora_core import Identity, load_lora, open_encoder
from hyperlora_core.cli import COMMANDS, main
from hyperlora_core.errors import cli


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photos of one person, one with two people."""
    folder = tmp_path_factory.mktemp("photos")
    for scene in range(2):
        photo_of(0, scene).save(folder / f"anna_{scene}.png")
    side_by_side(photo_of(0, 7), photo_of(1, 7)).save(folder / "pair.png")
    return folder


def test_generate(photos, tmp_path, capsys):
    out, identity = tmp_path / "lora" / "anna.safetensors", tmp_path / "anna_identity.safetensors"
    command = ["generate", str(photos / "anna_0.png"), str(photos / "anna_1.png"), "--checkpoint", "demo"]
    assert main([*command, "-o", str(out), "--identity", str(identity)]) == 0
    said = capsys.readouterr().out
    assert "anna_0.png: face of" in said and str(out) in said and str(identity) in said
    lora = load_lora(out)
    hyper = open_encoder("demo").hyper
    assert len(lora) == 3 * 4 * len(hyper.module_names)
    person = Identity.load(identity)
    assert person.photo_count == 2
    person.require_checkpoint(hyper)
    wanted = hyper.lora(person.coefficients)
    for name, tensor in lora.items():
        assert (tensor.float() - wanted[name]).norm() <= 5e-3 * wanted[name].norm()
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["hyperlora.photo_count"] == "2"


def test_generate_in_diffusers_naming_with_base(photos, tmp_path):
    out = tmp_path / "anna.safetensors"
    command = [
        "generate",
        str(photos / "anna_0.png"),
        "--checkpoint",
        "demo",
        "--naming",
        "diffusers",
        "--base-weight",
        "0.4",
    ]
    assert main([*command, "-o", str(out)]) == 0
    with safe_open(out, framework="pt") as file:
        names = list(file.keys())
        assert file.metadata()["hyperlora.base_weight"] == "0.4"
        assert file.get_tensor(names[0]).shape[0] == 8 + 4 or file.get_tensor(names[0]).shape[1] == 8 + 4
    assert all(name.startswith("unet.") for name in names)


def test_generate_compressed_with_preview(photos, tmp_path, capsys):
    out = tmp_path / "anna.safetensors"
    command = ["generate", str(photos / "anna_0.png"), "--checkpoint", "demo", "--base-weight", "0.4"]
    assert main([*command, "--rank", "5", "--preview", str(photos / "anna_1.png"), "-o", str(out)]) == 0
    assert "Rank 5: " in capsys.readouterr().out
    assert all(tensor.shape[0] == 5 for name, tensor in load_lora(out).items() if "lora_down" in name)
    with Image.open(tmp_path / "anna.png") as preview, Image.open(photos / "anna_1.png") as photo:
        assert np.array_equal(np.asarray(preview), np.asarray(photo))
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["modelspec.thumbnail"].startswith("data:image/jpeg")
    assert main([*command, "--rank", "0", "-o", str(tmp_path / "none.safetensors")]) == 2
    assert "choose 1 or more" in capsys.readouterr().err and not (tmp_path / "none.safetensors").exists()


def test_which_face(photos, tmp_path, capsys):
    outs = []
    for face in ("left", "right", "1"):
        outs.append(tmp_path / f"{face}.safetensors")
        assert (
            main(["generate", str(photos / "pair.png"), "--checkpoint", "demo", "--face", face, "-o", str(outs[-1])])
            == 0
        )
        assert "of 2 faces" in capsys.readouterr().out
    left, right, one = (out.read_bytes()[-4096:] for out in outs)
    assert right == one != left
    assert (
        main(
            [
                "generate",
                str(photos / "pair.png"),
                "--checkpoint",
                "demo",
                "--face",
                "2",
                "-o",
                str(tmp_path / "x.safetensors"),
            ]
        )
        == 2
    )
    assert_sentence(capsys.readouterr().err, ("Face 2 doesn't exist", "pair.png", "2 faces"))
    assert not (tmp_path / "x.safetensors").exists()


def test_portrait(photos, tmp_path, capsys):
    out = tmp_path / "anna.JPG"
    command = [
        "portrait",
        str(photos / "anna_0.png"),
        "--checkpoint",
        "demo",
        "--prompt",
        "portrait of a person",
        "--steps",
        "2",
    ]
    assert main([*command, "-o", str(out)]) == 0
    assert f"Portrait: {out}" in capsys.readouterr().out
    assert Image.open(out).size == (128, 128)
    with_person = np.asarray(Image.open(out)).astype(int)
    assert main([*command, "--weight", "0", "--base-weight", "0", "-o", str(out)]) == 0
    assert np.abs(np.asarray(Image.open(out)) - with_person).mean() > 1
    assert main([*command, "-o", str(tmp_path / "anna.txt")]) == 2
    assert_sentence(capsys.readouterr().err, ("anna.txt", ".png"))


def test_demo(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    for number in (1, 2, 3):
        folder = tmp_path / f"person_{number}"
        assert str(folder / "lora.safetensors") in said and str(folder / "portrait.png") in said
        assert Image.open(folder / "portrait.png").size == (128, 128)
        load_lora(folder / "lora.safetensors")
    assert str(tmp_path / "sheet.png") in said
    assert Image.open(tmp_path / "sheet.png").width == 4 * 256


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoint(name, photos, tmp_path, capsys):
    words = bad_checkpoint(name, tmp_path / "bad")
    command = ["generate", str(photos / "anna_0.png"), "--checkpoint", str(tmp_path / "bad")]
    assert main([*command, "-o", str(tmp_path / "out.safetensors")]) == 2
    assert_sentence(capsys.readouterr().err, ("hyperlora generate:", *words))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", PHOTOS)
def test_bad_photo(name, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    PHOTOS[name].spoil(photo)
    assert main(["generate", str(photo), "--checkpoint", "demo", "-o", str(tmp_path / "out.safetensors")]) == 2
    assert_sentence(capsys.readouterr().err, ("photo.png", *PHOTOS[name].words))
    assert not (tmp_path / "out.safetensors").exists()


def test_other_mistakes(photos, tmp_path, capsys):
    photo, out = str(photos / "anna_0.png"), ["-o", str(tmp_path / "out.safetensors")]
    for arguments, words in (
        (["--checkpoint", "demo", "--photo-weights", "a"], ("Photo weights 'a'",)),
        (["--checkpoint", "demo", "--photo-weights", "1,1"], ("don't fit 1 photo",)),
        (["--checkpoint", "demo", "--provider", "quantum"], ('"quantum" isn\'t a provider',)),
        (["--checkpoint", "demo", "--face-pack", str(tmp_path)], (str(tmp_path),)),
        (["--checkpoint", "demo", "--clip", photo], ("anna_0.png", "isn't a safetensors file")),
        (["--checkpoint", "demo", "--base-weight", "nan"], ("aren't numbers",)),
        (["--models-folder", str(tmp_path)], ("fidelity is not in", "download fidelity")),
    ):
        assert main(["generate", photo, *arguments, *out]) == 2, arguments
        assert_sentence(capsys.readouterr().err, words)


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])


@pytest.mark.skipif(os.name == "nt", reason="takes a link to Python")
def test_the_command_that_messages_name_works_where_nothing_is_installed(tmp_path, monkeypatch):
    """As in custom_nodes, from any folder, with a Python that looks in no folder by itself (ComfyUI's portable package)."""
    alone = tmp_path / "some where" / "python"
    alone.parent.mkdir()
    alone.symlink_to(os.path.realpath(sys.executable))
    monkeypatch.setattr(sys, "executable", str(alone))
    monkeypatch.setattr("hyperlora_core.errors.shutil.which", lambda _name: None)
    python, *words = shlex.split(cli("--help"))
    assert python == str(alone)
    done = subprocess.run([python, "-I", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "download" in done.stdout, done.stderr
