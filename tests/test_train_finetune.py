"""hyperlora finetune in miniature: a random LoRA beside an untrained narrow SDXL, on drawn portraits of one person."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bad_inputs import assert_sentence
from safetensors import safe_open

from hyperlora_core import HyperLoRAError, load_lora, save_lora
from hyperlora_core.cli import main
from hyperlora_core.demo import sdxl
from hyperlora_core.fingerprint import fingerprint
from hyperlora_core.lora import ALPHA, DOWN, UP, pairs
from hyperlora_core.metadata import describe
from hyperlora_core.prompt import TRIGGER
from hyperlora_core.train import config, data, finetune, loop
from hyperlora_core.train.features import memory_mapped
from hyperlora_core.train.trained import read_checkpoint

for package in ("accelerate", "diffusers", "transformers", "matplotlib"):
    pytest.importorskip(package)

PERSON, PEOPLE, SCENES, RANK = 20_000, 2, 3, 2
BASE = dataclasses.replace(
    sdxl.DEMO,
    channels=(32, 32, 32),
    res_blocks=1,
    text=(sdxl.TextSize(32, 1, 1, "quick_gelu"), sdxl.TextSize(64, 1, 1, "gelu")),
)
STEPS, SAVED, KILLED = 12, 6, 10
SHORT = {
    "steps": STEPS, "rate": 1e-2, "warmup": 1, "save_every": SAVED, "sample_every": 1000, "sheet_steps": 1,
    "face_weight": 1.0, "weights": "plain", "steps_drawn": [],
}  # fmt: skip


def random_lora(unet, seed=0):
    """fp16, of rank 2 and alpha 1, for all attention layers; down and up of a size that changes the picture."""
    given, lora = torch.Generator().manual_seed(seed), {}
    for path, layer in unet.named_modules():
        if path.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            key, (wide, narrow) = "lora_unet_" + path.replace(".", "_"), layer.weight.shape
            lora[key + DOWN] = (0.3 * torch.randn(RANK, narrow, generator=given)).half()
            lora[key + UP] = (0.3 * torch.randn(wide, RANK, generator=given)).half()
            lora[key + ALPHA] = torch.tensor(1.0)
    return lora


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data folder, a base, a LoRA file and a config; `command(out, ...)` runs them."""
    root = tmp_path_factory.mktemp("finetune")
    data.draw_data(root / "data", data.DataConfig(1, PERSON, PEOPLE, SCENES, 0.01))
    faces = memory_mapped(root / "data" / "embeddings.npy", np.float32, (PEOPLE * SCENES, 512))
    faces[:] = np.random.default_rng(0).normal(size=faces.shape)
    memory_mapped(root / "data" / "embedded.npy", np.uint8, (len(faces),))[:] = 1
    models = sdxl.random_models(BASE)
    sdxl.save_models(root / "sdxl", BASE, models)
    save_lora(random_lora(models["unet"]), root / "anna.safetensors", metadata=describe("Anna"))
    lines = config.config_path("finetune", "cpu", "cpu").read_text(encoding="utf-8").splitlines()
    named = {line.split(" = ")[0]: line for line in lines}
    assert SHORT.keys() <= named.keys()
    told = [
        f"{key} = {SHORT[key]!r}".replace("'", '"') if (key := line.split(" = ")[0]) in SHORT else line
        for line in lines
    ]
    (root / "short.toml").write_text("\n".join(told), encoding="utf-8")

    def command(out, *more, lora=None, photos=None, person=PERSON):
        whose = [] if person is None else ["--person", str(person)]
        files = {
            "--photos": photos or root / "data",
            "--base": root / "sdxl",
            "--config": root / "short.toml",
            "-o": out,
        }
        options = [str(word) for pair in files.items() for word in pair]
        return main(["finetune", str(lora or root / "anna.safetensors"), *options, *whose, "--device", "cpu", *more])

    return SimpleNamespace(root=root, command=command, models=models, lora=load_lora(root / "anna.safetensors"))


def make_task(world, lora=None, person=PERSON):
    given = config.load_config(world.root / "short.toml", finetune.Config)
    task = finetune.make_task(given, lora or world.lora, world.root / "data", world.root / "sdxl", person)
    return task, dataclasses.replace(given, origin=task.origin)


def loss_of(world, lora):
    """The loss on the same pictures, noise and steps each time."""
    task, _ = make_task(world, lora)
    task.module.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        batch = task.batch(loop.Draw(np.random.default_rng(7), 24, torch.device("cpu")))
        return float(sum(task.module(**batch).values()))


def last_line(capsys):
    """Of what was said on stderr: above it stand the bar, and what was said before."""
    return capsys.readouterr().err.splitlines()[-1]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


@pytest.fixture(scope="module")
def tuned(world):
    """The file of a run that was never stopped; the base and the LoRA themselves are as before."""
    base, given, out = (
        contents(world.root / "sdxl"),
        (world.root / "anna.safetensors").read_bytes(),
        world.root / "b.safetensors",
    )
    assert world.command(out) == 0
    assert contents(world.root / "sdxl") == base and (world.root / "anna.safetensors").read_bytes() == given
    return out


def test_the_loss_falls(world, tuned):
    assert loss_of(world, load_lora(tuned)) < loss_of(world, world.lora)  # an untrained model learns little


def test_the_file_is_the_same_kind_of_lora(world, tuned):
    lora = load_lora(tuned)
    assert list(lora) == list(world.lora)
    for name, tensor in world.lora.items():
        assert (lora[name].shape, lora[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(lora[name], tensor) == name.endswith(ALPHA)  # all is trained but alpha
    with (
        safe_open(tuned, framework="pt") as after,
        safe_open(world.root / "anna.safetensors", framework="pt") as before,
    ):
        said, known = after.metadata(), before.metadata()
    added = {key: said[key] for key in said.keys() - known.keys()}
    assert added == {
        "hyperlora.finetune_steps": "12",
        "hyperlora.finetune_batch": "4",
        "hyperlora.finetune_rate": "0.01",
        "hyperlora.finetune_photos": "3",
        "hyperlora.finetune_base": "sdxl",
    }
    assert {key: said[key] for key in known} == known
    assert (world.root / "b_training" / loop.SAMPLES / f"{STEPS:06}.png").exists()


def test_killed_and_resumed_is_as_if_never_stopped(world, tuned, capsys):
    out = world.root / "c.safetensors"

    def kill(step, _steps, means):
        if step == KILLED and means:
            raise SystemExit  # as SIGKILL: nothing is saved since step 6

    task, given = make_task(world)
    with pytest.raises(SystemExit):
        loop.train(task, given, world.root / "c_training", "cpu", progress=kill)
    assert read_checkpoint(world.root / "c_training" / loop.CHECKPOINT)["step"] == SAVED
    assert fingerprint(task.module.unet) == task.origin.base
    assert world.command(out) == 2 and not out.exists()
    assert_sentence(last_line(capsys), ("c_training", "--resume", "--out"))
    assert world.command(out, "--resume") == 0
    whole, halves = load_lora(tuned), load_lora(out)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_full_disk_costs_nothing(world, tuned, capsys, monkeypatch):
    before, lora = tuned.read_bytes(), load_lora(tuned)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hyperlora_core.lora.write_tensors", full)
    assert world.command(tuned, "--resume") == 2  # the training is done; the file is written again
    assert_sentence(last_line(capsys), (str(tuned), "No space left", "Free some space"))
    assert tuned.read_bytes() == before
    monkeypatch.undo()
    assert world.command(tuned, "--resume") == 0
    assert all(torch.equal(tensor, lora[name]) for name, tensor in load_lora(tuned).items())


def test_another_lora_is_another_run(world, tuned, tmp_path, capsys):
    save_lora(random_lora(world.models["unet"], seed=1), tmp_path / "ben.safetensors")
    assert world.command(tuned, "--resume", lora=tmp_path / "ben.safetensors") == 2
    assert_sentence(last_line(capsys), ("b_training", "another config", "origin.lora"))


def test_what_is_trained_is_what_a_host_would_apply(world):
    task, _ = make_task(world)
    injected = task.module.low_rank(3)
    for key, down, up, scale in pairs(world.lora):
        change = scale * up.float() @ down.float()
        assert scale == 0.5 and torch.allclose((injected[key].down[2] @ injected[key].up[2]).T, change, atol=1e-5)
    trained = {name for name, parameter in task.module.named_parameters() if parameter.requires_grad}
    assert trained == {f"{matrix}.{key}" for key in injected for matrix in ("down", "up")}


def test_batches_are_of_the_person_with_trigger_words(world, monkeypatch):
    task, _ = make_task(world, person=PERSON + 1)
    seen, captions = [], []
    pictures, texts = task.photos.pictures, task.texts
    monkeypatch.setattr(task.photos, "pictures", lambda rows, rng: seen.extend(rows) or pictures(rows, rng))
    monkeypatch.setattr(task, "texts", lambda told, device: captions.extend(told) or texts(told, device))
    task.batch(loop.Draw(np.random.default_rng(0), 40, torch.device("cpu")))
    assert set(seen) == set(range(SCENES, 2 * SCENES))
    assert all(caption.startswith(TRIGGER) for caption in captions) and captions.count(TRIGGER) in range(1, 15)


def test_whose_photos():
    one, each, several = np.array([5, 5, 5]), np.array([3, 7, 9]), np.array([3, 3, 9])
    assert finetune._rows_of(one, "x", None).tolist() == finetune._rows_of(each, "x", None).tolist() == [0, 1, 2]
    assert finetune._rows_of(several, "x", 3).tolist() == [0, 1]
    for people, person, said in (
        (several, None, "photos of 2 people.*--person 3"),
        (several, 4, "no photo of person 4.*from 3 to 9"),
        (np.array([], int), None, "no photo with a face"),
    ):
        with pytest.raises(HyperLoRAError, match=said):
            finetune._rows_of(people, "x", person)


def test_photos_that_cannot_be_used(world, tmp_path, capsys):
    data.draw_data(tmp_path / "unseen", data.DataConfig(1, PERSON, 1, 1, 0.01))
    (tmp_path / "raw").mkdir()
    for photos, person, words in (
        (tmp_path / "raw", None, ("holds no prepared photos", "hyperlora prepare")),
        (tmp_path / "unseen", None, ("lacks the faces' embeddings", "demo-faces")),
        (None, None, ("2 people", f"--person {PERSON}")),
    ):
        assert world.command(tmp_path / "x.safetensors", photos=photos, person=person) == 2
        assert_sentence(last_line(capsys), words)
    assert not (tmp_path / "x.safetensors").exists() and not (tmp_path / "x_training").exists()


def test_loras_that_cannot_be_tuned(world, tmp_path, capsys):
    key = next(pairs(world.lora)).key
    wide = {key + DOWN: torch.ones(RANK, 640), key + UP: torch.ones(640, RANK), key + ALPHA: torch.tensor(1.0)}
    file = tmp_path / "lora.safetensors"
    for lora, words in (
        (wide, ("doesn't fit", "sdxl", "640 x 640", "32 x 32")),
        ({"lora_te1_q" + ending: torch.ones(2, 2) for ending in (DOWN, UP)}, ("lora_te1_q", "something else")),
        (world.lora | {key + ALPHA: torch.tensor(0.0)}, (key, "alpha of 0", "learns nothing")),
    ):
        save_lora(lora, file)
        assert world.command(tmp_path / "x.safetensors", lora=file) == 2
        assert_sentence(last_line(capsys), words)
    assert world.command(tmp_path / "x.safetensors", lora=tmp_path / "none.safetensors") == 2
    assert_sentence(last_line(capsys), ("none.safetensors", "doesn't exist"))
    assert world.command(file, lora=file) == 2
    assert_sentence(last_line(capsys), ("lora.safetensors", "itself", "--out"))


def test_no_alpha_counts_as_the_rank(world, tmp_path, capsys):
    save_lora(
        {name: tensor for name, tensor in world.lora.items() if not name.endswith(ALPHA)}, tmp_path / "a.safetensors"
    )
    (tmp_path / "raw").mkdir()
    assert world.command(tmp_path / "x.safetensors", lora=tmp_path / "a.safetensors", photos=tmp_path / "raw") == 2
    assert "a.safetensors has no alpha for" in capsys.readouterr().out
    lora = load_lora(tmp_path / "a.safetensors")
    task, _ = make_task(world, lora)
    assert set(task.module.scales.values()) == {1.0}
