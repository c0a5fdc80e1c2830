"""Training of the demo's text-to-image model: the loop, its configs and data, and the three stages in miniature."""

import csv
import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from torch import nn

from hyperlora_core import HyperLoRAError
from hyperlora_core.demo.models import make_demo
from hyperlora_core.demo.portraits import HELD_OUT, Identity
from hyperlora_core.prompt import TRIGGER, with_trigger
from hyperlora_core.train import captions, config, data, demo_unet, demo_vae, loop
from hyperlora_core.train.sources import Sources
from hyperlora_core.train.trained import read_checkpoint
from hyperlora_core.vision import clip_pixels

for package in ("accelerate", "diffusers", "transformers", "open_clip", "matplotlib"):
    pytest.importorskip(package)

VAE = demo_vae.VAEConfig(
    widths=(16, 32, 64, 64), crops=(32,), latent_noise=0.05, square_weight=2.0, edge_weight=2.0, moment_weight=0.2
)
LOOP = config.LoopConfig(
    seed=1, steps=30, batch=8, accumulation=1, rate=0.05, warmup=2, cooldown=0.3, beta2=0.999, weight_decay=0.01, clip_norm=1.0,
    ema_decay=0.9, precision="no", channels_last=False, save_every=10, sample_every=1000,
)  # fmt: skip
DATA = data.DataConfig(seed=1, first_person=20_000, people=6, scenes=2, landmark_error=0.01)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    loop: config.LoopConfig
    slope: float = 3.0


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x, y):
        noise = 0.01 * torch.randn_like(x)  # the global generator is seeded too
        return {"square": (self.slope * x + noise - y).square().mean()}


class Toy:
    def __init__(self, run_config=None, spoil_at=None):
        self.config, self.module, self.spoil_at, self.batches = run_config, Line(), spoil_at, 0

    def batch(self, draw):
        self.batches += 1
        x = torch.from_numpy(draw.rng.normal(size=(draw.batch, 1)).astype(np.float32))
        return {"x": x, "y": x * (torch.nan if self.batches == self.spoil_at else 3.0)}

    def sheet(self):
        return None


def run(folder, toy=None, resume=False, progress=None, **changes):
    toy = toy or Toy()
    toy_config = ToyConfig(dataclasses.replace(LOOP, **changes))
    return toy, loop.train(toy, toy_config, folder, "cpu", resume, progress)


def weights(folder):
    state = read_checkpoint(folder / loop.CHECKPOINT)
    return state["module"]["slope"], state["ema"]["shadow_params"][0], state["step"]


def losses(folder):
    with (folder / loop.LOSSES).open() as file:
        return [(float(row["step"]), float(row["square"])) for row in csv.DictReader(file)]


def test_loop_trains_and_draws_its_curves(tmp_path):
    toy, reached = run(tmp_path, steps=60, rate=0.1)
    assert reached == 60 and abs(toy.module.slope.item() - 3) < 0.3
    rows = losses(tmp_path)
    assert [step for step, _ in rows] == [10, 20, 30, 40, 50, 60] and rows[-1][1] < 0.1 * rows[0][1]
    assert (tmp_path / loop.CURVES).read_bytes().startswith(b"\x89PNG")
    state = read_checkpoint(tmp_path / loop.CHECKPOINT)
    assert list(state["module"]) == ["slope"]  # what doesn't train isn't kept


@pytest.mark.parametrize("stop_at", [13, 20])
def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path, stop_at):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(whole)

    class Stopping(Toy):
        def batch(self, draw):
            if self.batches + 1 == stop_at:
                signal.raise_signal(signal.SIGINT)
            return super().batch(draw)

    _, reached = run(halves, Stopping())
    assert reached == stop_at
    assert run(halves, resume=True)[1] == 30
    for one, other in zip(weights(whole), weights(halves), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert losses(whole)[-1] == losses(halves)[-1]


def test_a_sheet_that_finds_no_memory_costs_the_sheet_alone(tmp_path, caplog):
    class Greedy(Toy):
        def sheet(self):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    assert run(tmp_path / "greedy", Greedy(), sample_every=10)[1] == 30
    run(tmp_path / "whole")
    assert torch.equal(weights(tmp_path / "greedy")[0], weights(tmp_path / "whole")[0])
    assert "No sheet at step 10: the GPU's memory ran out" in caplog.text


@pytest.mark.parametrize(("native", "wanted"), [(True, "bf16"), (False, "fp16")])
def test_automatic_precision_on_a_gpu(monkeypatch, native, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert loop._fast_precision("cuda") == wanted


def test_a_card_is_chosen_by_its_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("auto", "cpu", "cuda", "cuda:1"):
        loop._choose_card(device)
    assert chosen == [1]
    for device in ("cuda:2", "cuda:x", "cpu:1"):
        with pytest.raises(HyperLoRAError, match=f"asked for on {device}"):
            loop._choose_card(device)


def test_killed_between_checkpoints_loses_only_the_steps_since(tmp_path):
    def kill(step, _steps, means):
        if step == 20 and means:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", progress=kill)
    assert weights(tmp_path / "killed")[2] == 10
    run(tmp_path / "killed", resume=True)
    run(tmp_path / "whole")
    assert torch.equal(weights(tmp_path / "killed")[0], weights(tmp_path / "whole")[0])


def test_nothing_is_saved_unseen(tmp_path):
    with pytest.raises(HyperLoRAError, match="no number"):
        run(tmp_path, Toy(spoil_at=6), save_every=3)  # saved in between two rows of the table
    assert weights(tmp_path)[2] == 3 and [step for step, _ in losses(tmp_path)] == [3]


def test_accumulated_parts_make_one_step(tmp_path):
    toy, reached = run(tmp_path, steps=6, accumulation=4)
    assert toy.batches == 24 and reached == 6
    assert int(read_checkpoint(tmp_path / loop.CHECKPOINT)["optimizer"]["state"][0]["step"]) == 6


def test_another_run_is_not_continued_by_accident(tmp_path):
    run(tmp_path)
    before = (tmp_path / loop.CHECKPOINT).read_bytes()
    with pytest.raises(HyperLoRAError, match="--resume"):
        run(tmp_path)
    with pytest.raises(HyperLoRAError, match=r"loop\.seed was 1, is 2"):
        run(tmp_path, resume=True, seed=2)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before
    assert run(tmp_path, resume=True, steps=40, batch=4)[1] == 40  # how long and how broad is free


def test_trouble_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(HyperLoRAError, match="'square' is no number"):
        run(tmp_path, Toy(spoil_at=17))
    assert weights(tmp_path)[2] == 10 and torch.isfinite(weights(tmp_path)[0]).all()

    def full(_state, _path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(HyperLoRAError, match="Free some space"):
        run(tmp_path, resume=True)
    assert weights(tmp_path)[2] == 10
    for damaged in (b"PK\x03\x04 half a file", bytes(100)):  # cut off; what a power cut leaves
        (tmp_path / loop.CHECKPOINT).write_bytes(damaged)
        with pytest.raises(HyperLoRAError, match="can't be read as a checkpoint"):
            run(tmp_path, resume=True)


def test_rate_rises_holds_and_falls():
    rates = [loop.rate_at(dataclasses.replace(LOOP, steps=100, warmup=10), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 * LOOP.rate) and rates[9] == rates[69] == pytest.approx(LOOP.rate)
    assert rates[69] > rates[80] > rates[90] > rates[99] > 0


@pytest.mark.parametrize("restarts", [(20, 10), (0, 10), (10, 10)])
def test_rounds_out_of_order_are_refused(tmp_path, restarts):
    with pytest.raises(HyperLoRAError, match="must be steps above 0 that rise"):
        run(tmp_path, restarts=restarts)


def test_each_round_rises_and_falls():
    given = dataclasses.replace(LOOP, steps=300, warmup=10, restarts=(100, 900))  # the second lies behind the end
    rates = [loop.rate_at(given, step) for step in range(300)]
    assert rates[:100] == [loop.rate_at(dataclasses.replace(LOOP, steps=100, warmup=10), step) for step in range(100)]
    longer = [loop.rate_at(dataclasses.replace(LOOP, steps=200, warmup=10), step) for step in range(200)]
    assert rates[100:] == pytest.approx([loop.RESTART * rate for rate in longer])


@pytest.mark.parametrize("profile", ("gpu", "cpu"))
@pytest.mark.parametrize("stage", ["vae", "clip", "unet"])
def test_shipped_configs_are_whole(profile, stage):
    module = pytest.importorskip(f"hyperlora_core.train.demo_{stage}")
    loaded = config.load_config(config.config_path(f"demo-{stage}", profile, "cpu"), module.Config)
    assert config.from_flat(module.Config, json.loads(json.dumps(config.flat(loaded))), "x") == loaded


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seed = 1", "seed = 1\nsteeps = 3"), "unknown key steeps"),
        (("scenes = ", "# scenes = "), "lacks the key scenes"),
        (("people = ", "people = 0.5 #"), "people must be int, not 0.5"),
        (("seed = 1", "seed 1"), "not valid TOML"),
    ],
)
def test_bad_configs_are_told(tmp_path, change, said):
    text = config.config_path("demo-data", "cpu", "cpu").read_text()
    (tmp_path / "c.toml").write_text(text.replace(*change))
    with pytest.raises(HyperLoRAError, match=said):
        config.load_config(tmp_path / "c.toml", data.DataConfig)
    with pytest.raises(HyperLoRAError, match="can't be read"):
        config.load_config(tmp_path / "none.toml", data.DataConfig)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    data.draw_data(folder / "data", DATA)
    return folder


def test_data_is_whole_and_of_training_people(drawn):
    portraits = data.Data(drawn / "data")
    assert len(portraits) == 12 and not set(portraits.people.tolist()) & set(HELD_OUT)
    assert (portraits.people[::2] == portraits.people[1::2]).all() and len(set(portraits.people.tolist())) == 6
    for row in range(12):
        assert portraits.images[row].std() > 10 and portraits.faces[row].std() > 5
        assert portraits.caption(row).startswith(("portrait of", "black and white sketch of"))
        left, top, right, bottom = portraits.boxes[row]
        assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128


def test_drawing_can_be_stopped_and_resumed(drawn, tmp_path, monkeypatch):
    def stop(done, _total):
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(HyperLoRAError, match="held out"):
        data.draw_data(tmp_path / "data", dataclasses.replace(DATA, first_person=999_998))
    many = dataclasses.replace(DATA, people=27, scenes=1)
    with pytest.raises(KeyboardInterrupt):
        data.draw_data(tmp_path / "data", many, progress=stop)
    with pytest.raises(HyperLoRAError, match="lacks the portraits of"):
        data.Data(tmp_path / "data")
    with pytest.raises(HyperLoRAError, match="another config"):
        data.draw_data(tmp_path / "data", DATA)
    data.draw_data(tmp_path / "data", many)
    again = data.Data(tmp_path / "data")
    # a person's first portrait doesn't depend on who else is drawn
    assert np.array_equal(again.images[:6], data.Data(drawn / "data").images[::2])
    with pytest.raises(HyperLoRAError, match="hyperlora train demo-data"):
        data.Data(tmp_path)


def test_clip_reads_crops_as_in_use(drawn):
    faces = data.Data(drawn / "data").faces[[0, 3, 6]]
    ours, wanted = data.clip_input(faces, torch.device("cpu")), torch.stack([clip_pixels(face) for face in faces])
    assert ours.shape == (3, 3, 224, 224) and float((ours - wanted).abs().mean()) < 0.004


def test_captions_tell_what_is_seen():
    rng, scene = (
        np.random.default_rng(0),
        "portrait of an old person with glasses and a red hat, smiling, blue background",
    )
    person = Identity.from_seed(3)
    told = [captions.face_caption(scene, person, rng) for _ in range(20)]
    assert all(text.startswith("face of an old person with glasses, smiling") for text in told)
    assert not any(word in text for text in told for word in ("hat", "background", "hair"))
    told = [captions.surroundings_caption(scene, person, rng) for _ in range(20)]
    assert all(text.startswith("blurred portrait of a person with a red hat, blue background") for text in told)
    assert not any(word in text for text in told for word in ("glasses", "smiling", "eyes"))
    assert len({captions.picture_caption(scene, person, rng) for _ in range(20)}) > 10
    people = [" ".join(captions.identity_words(Identity.from_seed(seed))) for seed in range(300)]
    assert len(set(people)) > 290 and not any(TRIGGER.split()[0] in text for text in people)
    seen = set(" ".join(people).split())
    assert {"pale", "dark", "bald", "bun", "freckles", "moustache", "beard", "mole", "green", "ginger"} <= seen
    assert not {"green", "ginger", "skin"} & set(
        " ".join(" ".join(captions.identity_words(Identity.from_seed(s), colours=False)) for s in range(300)).split()
    )


def test_the_noise_schedule_is_sdxls():
    from hyperlora_core.train.diffusion import Schedule

    schedule, latents, noise = Schedule(), torch.full((2, 4, 2, 2), 10.0), torch.ones(2, 4, 2, 2)
    noisy = schedule.noisy(latents, noise, torch.tensor([0, 999]))
    assert float(noisy[0, 0, 0, 0]) == pytest.approx(10 * (1 - 0.00085) ** 0.5 + 0.00085**0.5)
    assert float(schedule.signal[999]) == pytest.approx(0.0047, abs=1e-4)
    steps = torch.tensor([0, 500, 999])
    snr = schedule.signal[steps] / (1 - schedule.signal[steps])
    assert torch.allclose(schedule.weights(steps, "min-snr"), torch.minimum(torch.tensor(1.0), 5 / snr))
    assert torch.equal(schedule.weights(steps, "plain"), torch.ones(3))
    assert torch.allclose(schedule.weights(steps, "velocity"), torch.minimum(torch.tensor(60.0), 1 + 1 / snr))


def test_steps_are_drawn_alike_or_about_a_middle():
    from hyperlora_core.train.diffusion import Schedule

    schedule, rng = Schedule(), np.random.default_rng(0)
    alike, late, early = (schedule.draw(rng, 4000, logits) for logits in ((), (1.0, 1.0), (-1.0, 1.0)))
    assert alike.min() < 10 and alike.max() > 989 and abs(alike.float().mean() - 499.5) < 20
    # the median of a logit-normal is the sigmoid of its mean
    assert abs(late.median() - 731) < 20 and abs(early.median() - 269) < 20
    assert early.min() >= 0 and late.max() <= 999


MINIATURE = {
    "demo-vae": [("batch = 32", "batch = 2"), ("crops = [32, 64, 128]", "crops = [32, 64]")],
    "demo-clip": [("batch = 128", "batch = 4")],
    "demo-unet": [("batch = 64", "batch = 4"), ("sheet_steps = 20", "sheet_steps = 2")],
    "demo-style": [("batch = 64", "batch = 4"), ("sheet_steps = 20", "sheet_steps = 2")],
}


def test_stages_train_resume_and_export_a_model_that_paints(tmp_path, capsys):
    from hyperlora_core import VisionEncoder
    from hyperlora_core.cli import main
    from hyperlora_core.pipeline import load_pipeline, render

    drawn = tmp_path / "train"
    data.draw_data(drawn / "data", dataclasses.replace(DATA, people=2))
    common = ["--out", str(drawn), "--device", "cpu", "--threads", "1", "--base", str(tmp_path / "demo")]
    assert main(["train", "demo-unet", *common]) == 2 and "doesn't exist. Give an SDXL" in capsys.readouterr().err
    make_demo(tmp_path / "demo")
    for stage, changes in MINIATURE.items():
        text = config.config_path(stage, "cpu", "cpu").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / f"{stage}.toml").write_text(text)
        asked = ["train", stage, *common, "--config", str(tmp_path / f"{stage}.toml")]
        assert main([*asked, "--steps", "1"]) == 0
        assert main([*asked, "--steps", "2", "--resume"]) == 0
        exported = tmp_path / ("style" if stage == "demo-style" else "demo")
        assert main(["train", stage, "--out", str(drawn), "--export", str(exported)]) == 0
    assert len(list(drawn.glob("unet/samples/*.png"))) == 2
    pipeline = load_pipeline(tmp_path / "demo")
    trained = read_checkpoint(drawn / "unet" / loop.CHECKPOINT)["ema"]["shadow_params"][0]
    assert torch.allclose(next(pipeline.unet.parameters()), trained, atol=1e-3)
    assert render(pipeline, "portrait of a person", steps=2).size == (128, 128)
    assert VisionEncoder.load(tmp_path / "demo" / "clip_vision").width == 128

    sources = Sources(drawn, drawn / "data", tmp_path / "demo", tmp_path / "demo" / "clip_vision")
    task = demo_unet.make_task(config.load_config(tmp_path / "demo-unet.toml", demo_unet.Config), sources, "unet")
    rows = np.array([1, 3, 3])
    first = task.latents.get(rows)
    task.latents.compute = None  # what is known is not encoded again
    assert np.array_equal(task.latents.get(rows), first) and first.shape == (3, 4, 16, 16)

    # the second model goes on from the first, on drawings of another style
    style = config.load_config(tmp_path / "demo-style.toml", demo_unet.Config)
    second = demo_unet.make_task(style, sources, "style")
    begun, ended = second.module.state_dict(), demo_unet.trained(drawn / "unet").state_dict()
    assert all(torch.equal(begun[name], value.half().float()) for name, value in ended.items())
    assert np.abs(second.latents.get(rows) - first).mean() > 0.05
    shipped, other = ((tmp_path / name / "sdxl/unet").glob("*.safetensors") for name in ("demo", "style"))
    assert next(shipped).read_bytes() != next(other).read_bytes()
    unknown = dataclasses.replace(style, unet=dataclasses.replace(style.unet, style="oil"))
    with pytest.raises(HyperLoRAError, match=r"unet\.style is 'oil'"):
        demo_unet.make_task(unknown, sources, "style")


def test_some_captions_describe_the_person_and_some_have_trigger_words(drawn):
    class Captions(demo_unet.TextEncoders):
        def __init__(self):
            self.seen = []

        def __call__(self, captions, device):
            self.seen += captions
            return torch.zeros(len(captions), 1, 1), torch.zeros(len(captions), 1)

    given = config.load_config(config.config_path("demo-unet", "cpu", "cpu"), demo_unet.Config)
    texts, vae = Captions(), demo_vae.Reconstruction(VAE).vae
    scenes = set(map(data.Data(drawn / "data").caption, range(12)))

    def said(**changes):
        changed = dataclasses.replace(given, unet=dataclasses.replace(given.unet, **changes))
        task = demo_unet.UNetTask(changed, data.Data(drawn / "data"), vae, texts)
        texts.seen = []
        task.batch(loop.Draw(np.random.default_rng(0), 200, torch.device("cpu")))
        return texts.seen

    assert set(said(told=0.0, triggered=0.0)) == scenes | {""}
    told = [caption for caption in said(told=0.5, triggered=0.0) if caption not in scenes | {""}]
    assert 60 < len(told) < 120  # half of those that aren't empty
    assert all(any(caption.startswith(scene) for scene in scenes) for caption in told)
    triggered = [caption for caption in said(told=0.0, triggered=0.5) if caption.startswith(TRIGGER)]
    assert 70 < len(triggered) < 130
    assert set(triggered) == {with_trigger(caption) for caption in scenes | {""}}


def test_a_narrow_autoencoder_widened_is_the_same_function():
    vae = demo_vae.Reconstruction(VAE).vae
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wide = demo_vae.widened(vae)
    with torch.no_grad():
        latents, wide_latents = vae.encode(pictures).latents, wide.encode(pictures).latents
        assert torch.allclose(wide_latents, latents, atol=1e-4)
        assert torch.allclose(wide.decode(latents).sample, vae.decode(latents).sample, atol=1e-4)
    assert sum(p.numel() for p in wide.parameters()) > 1.4 * sum(p.numel() for p in vae.parameters())


def test_the_autoencoder_starts_with_every_pictures_colour():
    colours = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = colours[:, :, None, None].expand(-1, -1, 128, 128)
    vae = demo_vae.Reconstruction(VAE).vae
    demo_vae.start_with_colours(vae, pictures)
    with torch.no_grad():
        latents = vae.encode(pictures).latents
        decoded = vae.decode(latents).sample
    # in the middle, far from the zeros beyond a picture's edge
    assert (decoded[:, :, 63, 63] - colours).abs().mean() < 0.15 * colours.abs().mean()
    assert torch.allclose(latents[:, :3, 7:9, 7:9].std((0, 2, 3)), torch.ones(3), atol=0.1)


def test_a_second_training_in_a_process_may_have_another_precision():
    given = config.load_config(config.config_path("demo-unet", "cpu", "cpu"), demo_unet.Config).loop
    for precision in ("no", "bf16", "no"):
        made = loop.make_accelerator(dataclasses.replace(given, precision=precision), "cpu")
        assert made.mixed_precision == precision
