"""HyperLoRA's three stages in miniature: drawn people, an untrained narrow SDXL, the demo's CLIP tower."""

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import likeness
from hyperlora_core import HyperLoRAError, load_hyperlora
from hyperlora_core.demo import sdxl
from hyperlora_core.demo.hyperlora import HyperLoRASize, unet_modules
from hyperlora_core.encode import RECOGNITION
from hyperlora_core.fingerprint import fingerprint
from hyperlora_core.inject import Injection, LowRank
from hyperlora_core.locate import DEMO_CLIP, demo_folder
from hyperlora_core.prompt import TRIGGER
from hyperlora_core.train import config, data, diffusion, loop, stage
from hyperlora_core.train.features import memory_mapped
from hyperlora_core.train.network import Network, group_of, spread_loss
from hyperlora_core.train.sources import Sources
from hyperlora_core.train.trained import Trained, read_checkpoint

for package in ("accelerate", "diffusers", "transformers", "open_clip", "matplotlib"):
    pytest.importorskip(package)

STAGES = ("base-lora", "id-clip", "id-embedding")
PEOPLE, SCENES, UNSEEN = 5, 3, 4  # UNSEEN: the row in which no face was found
DATA = data.DataConfig(seed=1, first_person=20_000, people=PEOPLE, scenes=SCENES, landmark_error=0.01)
BASE = dataclasses.replace(
    sdxl.DEMO,
    channels=(32, 32, 32),
    res_blocks=1,
    text=(sdxl.TextSize(32, 1, 1, "quick_gelu"), sdxl.TextSize(64, 1, 1, "gelu")),
)
SIZE = HyperLoRASize(
    bases=4, rank=2, base_rank=2, width=64, depth=1, heads=1, clip_width=128, id_tokens=2, effect=0.5
)  # fmt: skip
SHORT = {
    "steps": 40, "batch": 8, "rate": 1e-2, "warmup": 2, "cooldown": 0.3, "save_every": 20, "sample_every": 1000, "sheet_steps": 1,
    "bases_pace": 1.0, "spread": 0.0,
    "weights": "plain", "steps_drawn": (),  # an untrained model has nothing to tell where there is mostly noise
}  # fmt: skip


def short(name, size=SIZE, **changes):
    """A shipped config of the stage, with the small network and few steps; `changes` of loop and stage."""
    given, changes = config.load_config(config.config_path(name, "cpu", "cpu"), stage.Config), SHORT | changes
    loop_config, own = (
        dataclasses.replace(part, **{k: v for k, v in changes.items() if hasattr(part, k)})
        for part in (given.loop, given.stage)
    )
    return stage.Config(loop_config, size, own)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    data.draw_data(root / "data", DATA)
    rng = np.random.default_rng(0)
    faces = np.repeat(rng.normal(size=(PEOPLE, 512)), SCENES, 0) + 0.3 * rng.normal(size=(PEOPLE * SCENES, 512))
    embeddings = memory_mapped(root / "data" / "embeddings.npy", np.float32, faces.shape)
    embeddings[:] = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    embeddings[UNSEEN] = np.nan
    memory_mapped(root / "data" / "embedded.npy", np.uint8, (len(faces),))[:] = 1
    sdxl.save_models(root / "sdxl", BASE, sdxl.random_models(BASE))
    return Sources(root, root / "data", root / "sdxl", demo_folder() / DEMO_CLIP)


def loss_on(task, seed=7, batch=24):
    """The loss on the same pictures, noise and steps each time."""
    task.module.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        draw = loop.Draw(np.random.default_rng(seed), batch, torch.device("cpu"))
        return float(sum(task.module(**task.batch(draw)).values()))


@pytest.fixture(scope="module")
def trained(sources):
    """All stages, one after the other: name -> loss before and after, and the base's fingerprints before and after."""
    seen = {}
    for name in STAGES:
        task = stage.make_task(short(name), sources, name)
        before, model = loss_on(task), fingerprint(task.module.unet)
        assert loop.train(task, short(name), sources.root / name, "cpu") == SHORT["steps"]
        seen[name] = (before, loss_on(task), model, fingerprint(task.module.unet))
    return seen


def test_likeness_compares_the_right_person_with_others(trained, sources):
    task = likeness.trained_stage(sources, "id-embedding")
    for key, value in network_at(sources, "id-embedding", trained_too=True).items():
        assert torch.equal(value, dict(task.module.network.named_parameters())[key.removeprefix("network.")]), key
    by_whose, steps, share = likeness.errors(task, 0)
    assert steps.shape == (likeness.BATCH,) and 0 < share < 1
    assert all(errors.shape == (likeness.BATCH,) for errors in by_whose.values())
    # the network has learned, and another person's LoRA is another one
    assert by_whose[likeness.RIGHT].mean() < by_whose[likeness.NONE].mean()
    assert (by_whose[likeness.RIGHT] - by_whose[likeness.OTHER]).abs().max() > 1e-5


def network_at(sources, name, trained_too=False):
    """The stage's network by name of tensor: as the stage begins, or as it ended."""
    network = stage.make_network(short(name), stage.load_pipeline(sources.base, device="cpu").unet, sources.root)
    if trained_too:
        stage.take_over(network, sources.root / name / loop.CHECKPOINT)
    return {key: value.detach().clone() for key, value in network.named_parameters()}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_lowers_its_loss_and_leaves_the_base_alone(trained, sources, name):
    before, after, model, model_after = trained[name]
    assert after < 0.998 * before  # of an untrained model little can be learnt
    assert model == model_after
    assert (sources.root / name / loop.SAMPLES / f"{SHORT['steps']:06}.png").exists()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_changes_the_groups_it_names_and_no_others(trained, sources, name):
    first, last = network_at(sources, name), network_at(sources, name, trained_too=True)
    changed = {key for key in first if not torch.equal(first[key], last[key])}
    assert {group_of(key, SIZE.conditions) for key in changed} == set(short(name).stage.trains)
    # but for what has no gradient: a key's bias, had it one
    assert len(changed) > 0.9 * sum(group_of(key, SIZE.conditions) in short(name).stage.trains for key in first)
    for earlier in short(name).stage.start:  # what came before is where this one began
        given = Trained(sources.root / earlier / loop.CHECKPOINT).values
        assert all(torch.equal(first[key.removeprefix("network.")], value) for key, value in given.items())


@pytest.mark.parametrize("name", STAGES)
def test_killed_and_resumed_is_as_if_never_stopped(trained, sources, name):
    folder = sources.root / f"killed-{name}"

    def kill(step, _steps, means):
        if step == 30 and means:
            raise SystemExit  # as SIGKILL: nothing is saved since step 20

    with pytest.raises(SystemExit):
        loop.train(stage.make_task(short(name), sources, name), short(name), folder, "cpu", progress=kill)
    assert read_checkpoint(folder / loop.CHECKPOINT)["step"] == 20
    loop.train(stage.make_task(short(name), sources, name), short(name), folder, "cpu", resume=True)
    whole, halves = (read_checkpoint(path / loop.CHECKPOINT) for path in (sources.root / name, folder))
    assert whole["step"] == halves["step"] == SHORT["steps"]
    assert all(torch.equal(value, halves["module"][key]) for key, value in whole["module"].items())
    for one, other in zip(whole["ema"]["shadow_params"], halves["ema"]["shadow_params"], strict=True):
        assert torch.equal(one, other)
    assert (sources.root / name / loop.LOSSES).read_text().count("\n") == (folder / loop.LOSSES).read_text().count("\n")


@pytest.fixture(scope="module")
def task(trained, sources):
    return stage.make_task(short("id-embedding", other_photo=1.0, caption_dropout=0.5), sources, "id-embedding")


def drawn(task, batch=8, seed=0):
    return task.batch(loop.Draw(np.random.default_rng(seed), batch, torch.device("cpu")))


@torch.no_grad()
def test_what_a_scenario_asks_for(task):
    module, batch = task.module.eval(), drawn(task, 6)

    def losses(scenario):
        batch["scenarios"], batch["base_weights"] = torch.full((6,), scenario), torch.ones(6)
        return {name: float(loss) for name, loss in module(**batch).items()}

    everything = [losses(scenario) for scenario in (stage.RECONSTRUCT, stage.ID_ALONE, stage.BESIDE_BASE)]
    for scenario, name in enumerate(("reconstruct", "ID alone", "beside base")):
        assert [part for part, loss in everything[scenario].items() if loss] == [name]

    kept = {key: p.clone() for key, p in module.network.basis.named_parameters() if "id_up" in key}
    for key in kept:
        module.network.basis.get_parameter(key).zero_()
    # an identity that changes nothing is what (b) and (c) ask for; (a) then is the base branch's error
    assert losses(stage.ID_ALONE)["ID alone"] < 1e-10 and losses(stage.BESIDE_BASE)["beside base"] < 1e-10
    without = losses(stage.RECONSTRUCT)["reconstruct"]
    ones = torch.ones(6)
    base = module.network.low_rank(module.network.base_coefficients(batch["base_tokens"]), "base", ones)
    inputs = tuple(batch[key] for key in ("noisy", "steps", "text", "pooled", "time_ids"))
    errors = (batch["weights"] * (module._predict(inputs, base) - batch["noise"]).square()).mean()
    assert without == pytest.approx(float(errors), rel=1e-4)
    for key, value in kept.items():
        module.network.basis.get_parameter(key).copy_(value)


@torch.no_grad()
def test_the_base_is_left_out_of_some_reconstructions(task):
    batch = drawn(task, 400)
    told = batch["scenarios"] == stage.RECONSTRUCT
    off = batch["base_weights"] == 0
    assert 0.4 < off[told].float().mean() < 0.6 and not off[~told].any()

    few = drawn(task, 4)
    few["scenarios"] = torch.zeros(4, dtype=torch.long)

    def error(weights, tokens):
        return float(task.module(**few | {"base_weights": weights, "base_tokens": tokens})["reconstruct"])

    tokens, others = few["base_tokens"], torch.randn(few["base_tokens"].shape)
    ones, zeros = torch.ones(4), torch.zeros(4)
    assert error(zeros, tokens) == error(zeros, others)
    assert error(ones, tokens) != error(ones, others)


def test_trigger_words_stand_where_the_identity_is_meant(task, monkeypatch):
    told, texts = [], task.texts
    monkeypatch.setattr(task, "texts", lambda captions, device: told.extend(captions) or texts(captions, device))
    scenarios = drawn(task, 200)["scenarios"].numpy()
    assert [caption.startswith(TRIGGER) for caption in told] == (scenarios == stage.RECONSTRUCT).tolist()
    assert 0.8 < (scenarios == stage.RECONSTRUCT).mean() < 0.98 and set(scenarios) == {0, 1, 2}
    assert 60 < sum(caption in ("", TRIGGER) for caption in told) < 140  # half of the captions are left out
    # with every word of the trigger before the caption's end is cut off
    ids = texts.tokenizers[0]([f"{TRIGGER}, " + "blue " * 200], truncation=True, max_length=77).input_ids[0]
    assert len(ids) == 77 and ids[1:4] == texts.tokenizers[0]([TRIGGER]).input_ids[0][1:4]


def test_the_person_is_read_from_another_photo(task):
    assert len(task.photos) == PEOPLE * SCENES - 1  # the one without a face is left out
    rows = np.arange(len(task.photos))
    other = task._references(rows, np.random.default_rng(0))
    assert (other != rows).all() and (task.photos.people[other] == task.photos.people[rows]).all()
    batch, rng = drawn(task, 5), np.random.default_rng(0)
    faces = np.asarray(task.photos.embeddings(rows))
    chosen = rng.integers(len(rows), size=5)
    for row, embeds in zip(chosen, batch["embeds"].numpy(), strict=True):
        (reference,) = np.flatnonzero(np.isclose(faces, embeds).all(1))
        assert reference != row and task.photos.people[reference] == task.photos.people[row]


def test_face_weights():
    weights = diffusion.face_weights(np.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.0]]), 4, 3.0)
    assert weights.shape == (2, 1, 4, 4) and torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    assert torch.allclose(
        weights[0, 0] / weights[0, 0, 0, 0], torch.tensor([[1.0] * 4] * 2 + [[1.0, 3.0, 3.0, 1.0]] * 2)
    )
    assert torch.equal(weights[1], torch.ones(1, 4, 4))


def test_spread_is_least_where_people_differ_alike_in_all_directions():
    people = torch.eye(4).repeat(2, 1)
    people[4:] *= -1  # mean 0, and a quarter of the variance in each of four directions
    even = people[:, None].expand(-1, 3, -1)
    assert spread_loss(even) == pytest.approx(0, abs=1e-3)
    skewed = even[[0, 0, 0, 1, 4, 4, 4, 5]]  # two directions, one of them seldom
    assert 0.1 < spread_loss(skewed) < spread_loss(even[:1].expand(8, -1, -1)) < 10, (
        "alike for all is the worst, and finite"
    )


def test_spread_joins_the_loss_and_steers_the_encoder(sources):
    module = stage.make_task(short("id-embedding", start=(), spread=0.1), sources, "x").module
    batch = drawn(stage.make_task(short("id-embedding", start=()), sources, "x"))
    spread = module(**batch)["spread"]
    coefficients = module.network.coefficients(batch["embeds"], batch["tokens"])
    assert spread.item() == pytest.approx(0.1 * spread_loss(coefficients).item(), rel=1e-4)
    spread.backward()
    assert module.network.encoder["resampler"].proj_out.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in module.network.basis.parameters()), "bases don't decide how people differ"


@pytest.mark.parametrize("group", ("embedding", "clip", "base"))
def test_what_is_alike_for_everybody_begins_at_nothing(group):
    network = Network(unet_modules(sdxl.unet_config(BASE)), SIZE, seed=0)
    width = 512 if group == "embedding" else SIZE.clip_width
    inputs = torch.randn(40, 3, width, generator=torch.Generator().manual_seed(0)) + 5
    encoder = network.encoder
    layer = {
        "embedding": encoder["id_projector"][0],
        "clip": encoder["resampler"].proj_in_2,
        "base": encoder["base_resampler"].proj_in,
    }[group]
    with torch.no_grad():
        assert layer(inputs).mean((0, 1)).abs().min() > 1e-3
        network.centre(group, inputs)
        assert layer(inputs).mean((0, 1)).abs().max() < 1e-3
        trained = layer.bias.clone()
        network.centre(group, inputs + 1)
    assert torch.equal(layer.bias, trained), "a stage that goes on forgot what the one before it learned"


def test_a_stage_begins_at_the_photos_mean(sources):
    task = stage.make_task(short("id-embedding", start=(), trains=("embedding", "trunk", "bases")), sources, "x")
    embeds = torch.from_numpy(task.photos.embeddings(np.arange(len(task.photos))))  # fewer than CENTRE_PHOTOS
    assert task.module.network.encoder["id_projector"][0](embeds).mean(0).abs().max() < 1e-5
    assert not task.module.network.encoder["resampler"].proj_in_2.bias.any(), "clip isn't trained here"


def test_the_bases_learn_at_their_own_pace(sources, tmp_path, monkeypatch):
    config = short("id-embedding", start=(), steps=1, warmup=1, bases_pace=3.0)
    task = stage.make_task(config, sources, "x")
    before = {name: value.detach().clone() for name, value in task.module.network.named_parameters()}
    loop.train(task, config, tmp_path, "cpu")
    rate = loop.rate_at(config.loop, 0)
    after = dict(task.module.network.named_parameters())
    moved = {name: float((after[name].detach() - value).abs().max()) for name, value in before.items()}
    # Adam's first step is the rate, whatever the gradient
    assert moved["basis.0/to_q/id_up_basis"] == pytest.approx(3 * rate, rel=0.05)
    assert moved["encoder.resampler.proj_out.bias"] == pytest.approx(rate, rel=0.05)


def test_features_on_disk_are_what_is_computed_without(task, sources):
    fresh = stage.make_task(short("id-embedding", cache=False), sources, "id-embedding")
    rows, cpu = np.array([0, 5]), torch.device("cpu")
    for kind in ("identity", "base"):
        assert torch.allclose(task._tokens(kind, rows, cpu), fresh._tokens(kind, rows, cpu), atol=2e-2, rtol=2e-3)
    (cached, boxes), (encoded, same) = (t._latents(rows, np.random.default_rng(0), cpu) for t in (task, fresh))
    assert torch.allclose(cached, encoded, atol=1e-2) and np.allclose(boxes, same, atol=1e-3)


@pytest.fixture
def another_precision():
    """accelerate keeps one precision for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("another_precision")
def test_precision_checkpointing_and_accumulation_together(trained, sources, tmp_path):
    changed = short("id-embedding", steps=2, batch=2, accumulation=2, precision="bf16", checkpointing=True)
    assert loop.train(stage.make_task(changed, sources, "x"), changed, tmp_path, "cpu") == 2
    state = read_checkpoint(tmp_path / loop.CHECKPOINT)
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in state["module"].values())


def test_a_block_computed_again_has_the_lora_it_had(sources):
    """Gradients with checkpointing are those without, also when another LoRA was set before the backward pass."""
    unet = stage.load_pipeline(sources.base, device="cpu").unet.requires_grad_(False)
    keys = [f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_{name}" for name in ("to_q", "to_v")]
    injection, given = Injection(unet, keys), torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=given)

    inputs = (noise(2, 4, 8, 8), torch.tensor([3, 500]))
    conditions = {"text_embeds": noise(2, 64), "time_ids": noise(2, 6)}
    text, widths = noise(2, 5, 96), (32, 96)
    loras = [
        {
            key: LowRank(noise(n, wide, 2), noise(n, 2, 32).requires_grad_())
            for key, wide in zip(keys, widths, strict=True)
        }
        for n in (2, 1)
    ]

    def gradients():
        injection.set(loras[0])
        first = unet(*inputs, encoder_hidden_states=text, added_cond_kwargs=conditions).sample
        injection.set(loras[1])
        some = {key: value[:1] for key, value in conditions.items()}
        second = unet(inputs[0][:1], inputs[1][:1], encoder_hidden_states=text[:1], added_cond_kwargs=some).sample
        injection.set(None)
        return torch.autograd.grad(
            first.square().sum() + second.square().sum(), [loras[i][key].up for i in (0, 1) for key in keys]
        )

    plain = gradients()
    unet.enable_gradient_checkpointing(injection.repeat)
    again = gradients()
    assert all(gradient.abs().max() > 0 for gradient in plain)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(plain, again, strict=True))


def test_export_is_a_checkpoint_that_every_loader_reads(trained, sources, task, tmp_path):
    folder = stage.export(sources, "id-embedding", tmp_path / "hyper_lora")
    hyper = load_hyperlora(folder)
    assert hyper.metadata[RECOGNITION] == "rec_demo" and hyper.has_base and hyper.uses_id_embeds
    network = stage.make_network(short("id-embedding"), task.module.unet, sources.root)
    stage.take_over(network, sources.root / "id-embedding" / loop.CHECKPOINT)
    batch = drawn(task, 4)
    with torch.no_grad():
        ours = network.coefficients(batch["embeds"], batch["tokens"])
        ours_base = network.base_coefficients(batch["base_tokens"])
    for i in range(4):
        theirs = hyper.coefficients(batch["tokens"][i : i + 1], batch["embeds"][i : i + 1])
        theirs_base = hyper.coefficients(batch["base_tokens"][i : i + 1], branch="base")
        # all rows together: one that is nearly 0 before it gets its length is another in fp16
        for one, other in ((theirs, ours[i]), (theirs_base, ours_base[i])):
            assert (one - other).norm() < 1e-2 * other.norm()
    key = network.basis.keys[0]
    pair, lora = network.low_rank(ours, "id", torch.ones(4))[key], hyper.lora(ours[0])
    product = lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"] * lora[f"{key}.alpha"] / SIZE.rank
    assert torch.allclose((pair.down[0] @ pair.up[0]).T, product, atol=5e-3)


def test_what_a_stage_has_not_read_says_nothing_in_its_export(trained, sources, task, tmp_path):
    hyper = load_hyperlora(stage.export(sources, "id-clip", tmp_path / "hyper_lora"))
    batch = drawn(task, 2)
    one, other = (hyper.coefficients(batch["tokens"][:1], batch["embeds"][i : i + 1]) for i in range(2))
    assert torch.equal(one, other)
    one, other = (hyper.coefficients(batch["tokens"][i : i + 1], batch["embeds"][:1]) for i in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        ({}, {"trains": ("bases", "everything")}, "stage.trains names everything. Known groups: base, trunk"),
        ({}, {"trains": ()}, "stage.trains names nothing"),
        ({}, {"conditions": ("clip",)}, "stage.trains names embedding, which nothing goes through"),
        ({}, {"conditions": ("voice",)}, "stage.conditions names voice"),
        ({"conditions": ("clip", "embedding")}, {}, "hyperlora.conditions must be"),
        ({"base_rank": 0}, {}, "base_rank at least 1"),
        ({}, {"scenarios": (0.9, 0.2, 0.0)}, "must sum to 1"),
        (
            {},
            {"batch": 4, "spread": 0.1},
            "stage.spread looks at .* in hyperlora.bases = 4 directions, which loop.batch = 4",
        ),
        ({}, {"start": ("base-lora", "nowhere")}, "There is no .*nowhere.* train that model first"),
        ({"rank": 3}, {}, "was trained with other sizes .*give all stages the same"),
        ({"clip_width": 64}, {}, "makes tokens of 128 channels, but hyperlora.clip_width is 64"),
    ],
)
def test_what_doesnt_fit_is_told(trained, sources, size, changes, said):
    with pytest.raises(HyperLoRAError, match=said):
        stage.make_task(short("id-embedding", dataclasses.replace(SIZE, **size), **changes), sources, "x")
