"""Coefficients that belong to people and to words, and the reader that is fitted to them, in miniature."""

import dataclasses

import numpy as np
import pytest
import torch
from test_train_stage import PEOPLE, SHORT, SIZE, loss_on, short, sources  # noqa: F401

from benchmarks import likeness
from hyperlora_core import HyperLoRAError, load_hyperlora
from hyperlora_core.demo.portraits import Scene
from hyperlora_core.train import config, loop, reader, stage
from hyperlora_core.train.people import (
    CODES,
    WORDS,
    means_by,
    reliable_directions,
    theirs,
    trained_coefficients,
    with_room,
)
from hyperlora_core.train.trained import Trained, read_checkpoint
from hyperlora_core.train.words import PASSING, leave_out, words_shown

OWN = PEOPLE - 1  # people with a code


def people_config(people=OWN, **changes):
    """The shipped config of id-people, with the small network and few steps."""
    given = config.load_config(config.config_path("id-people", "cpu", "cpu"), stage.Config)
    own = dataclasses.replace(given.people, people=people, start=1.0)
    return dataclasses.replace(short("id-people", **changes), people=own)


def words_config(untold=0.5, **changes):
    """The shipped config of id-words, likewise."""
    given = config.load_config(config.config_path("id-words", "cpu", "cpu"), stage.Config)
    own = dataclasses.replace(short("id-words", **changes), people=people_config().people)
    return dataclasses.replace(own, words=dataclasses.replace(given.words, untold=untold, pace=1.0))


def make(name, sources):  # noqa: F811
    """A stage's task and config."""
    configs = {"base-lora": lambda: short("base-lora", steps=2), "id-people": people_config, "id-words": words_config}
    if name == "id-reader":
        given = reader_config()
        return reader.make_task(given, sources, name), given
    given = configs[name]()
    return stage.make_task(given, sources, name), given


def reader_config(**changes):
    """The shipped config of id-words-reader, likewise; `changes` of loop and reader."""
    given = config.load_config(config.config_path("id-words-reader", "cpu", "cpu"), reader.Config)
    changes = SHORT | {"directions": 40, "steps": 200} | changes
    loop_config, own = (
        dataclasses.replace(part, **{k: v for k, v in changes.items() if hasattr(part, k)})
        for part in (given.loop, given.reader)
    )
    return reader.Config(loop_config, SIZE, own)


@pytest.fixture(scope="module")
def trained(sources):  # noqa: F811
    """All four, one after the other: name -> loss before and after."""
    seen = {}
    for name in ("base-lora", "id-people", "id-words", "id-reader"):
        task, given = make(name, sources)
        before = loss_on(task)
        assert loop.train(task, given, sources.root / name, "cpu") == given.loop.steps
        seen[name] = (before, loss_on(task))
    return seen


@pytest.mark.parametrize("name", ["id-people", "id-reader"])  # words have nothing to lower on an untrained model
def test_each_lowers_its_loss(trained, name):
    before, after = trained[name]
    assert after < 0.998 * before
    if name == "id-reader":
        assert before > 0.9 and after < 0.5, "1 is who tells nobody apart"


@pytest.mark.parametrize("name", ["id-people", "id-words", "id-reader"])
def test_killed_and_resumed_is_as_if_never_stopped(trained, sources, name):  # noqa: F811
    folder = sources.root / f"killed-{name}"
    task, given = make(name, sources)

    def kill(step, _steps, means):
        if step == given.loop.steps - 10 and means:
            raise SystemExit

    with pytest.raises(SystemExit):
        loop.train(task, given, folder, "cpu", progress=kill)
    assert read_checkpoint(folder / loop.CHECKPOINT)["step"] == given.loop.steps - 20
    loop.train(make(name, sources)[0], given, folder, "cpu", resume=True)
    whole, halves = (read_checkpoint(path / loop.CHECKPOINT) for path in (sources.root / name, folder))
    assert whole["step"] == halves["step"] == given.loop.steps
    assert all(torch.equal(value, halves["module"][key]) for key, value in whole["module"].items())


@torch.no_grad()
def test_on_average_over_people_there_is_no_lora(trained, sources):  # noqa: F811
    task = stage.make_task(people_config(), sources, "x")
    values = Trained(sources.root / "id-people" / loop.CHECKPOINT).values
    task.module.load_state_dict(values, strict=False)
    people, network = task.module.people, task.module.network
    coefficients = people(torch.arange(OWN))  # (people, l, K)
    assert torch.allclose(coefficients.norm(dim=-1), torch.ones(OWN, coefficients.shape[1]))
    own = coefficients[..., 1:] / coefficients[..., :1]
    assert own.mean(0).abs().max() < 1e-5 and own.std(0).max() > 0.1
    nobody = torch.zeros_like(coefficients[:1])
    nobody[..., 0] = 1
    for key, pair in network.low_rank(nobody, "id", torch.ones(1)).items():
        assert not pair.up.any(), key
        assert pair.down.any(), key
    pairs = network.low_rank(coefficients, "id", torch.ones(OWN)).values()
    assert all((pair.down @ pair.up).flatten(1).norm(dim=1).min() > 0 for pair in pairs)


def test_only_the_people_with_coefficients_are_learned_from(trained, sources):  # noqa: F811
    task = stage.make_task(people_config(), sources, "x")
    batch = task.batch(loop.Draw(np.random.default_rng(0), 200, torch.device("cpu")))
    assert set(batch["who"].tolist()) == set(range(OWN))
    assert set(task.photos.people[task.rows]) == set(np.unique(task.photos.people)[:OWN])


def test_the_people_learn_at_their_own_pace(trained, sources, tmp_path):  # noqa: F811
    given = people_config(steps=1, warmup=1)
    task = stage.make_task(given, sources, "x")
    before = task.module.people.codes.detach().clone()
    directions = task.module.people.directions.detach().clone()
    assert torch.equal(directions, stage.make_task(given, sources, "x").module.people.directions), "the seed decides"
    loop.train(task, given, tmp_path, "cpu")
    moved = (task.module.people.codes.detach() - before).abs().max()
    assert moved == pytest.approx(given.people.pace * loop.rate_at(given.loop, 0), rel=0.05)


@torch.no_grad()
def test_the_regression_finds_what_photos_tell(trained, sources):  # noqa: F811
    """Coefficients that are a linear function of the embedding come back, for people without any of their own too."""
    task = reader.make_task(reader_config(gain=1.0, ridge=1e-6, tokens=1e-3), sources, "x")
    photos, shape = task.photos, task.read.shape
    rng = torch.Generator().manual_seed(0)
    seeds = np.unique(photos.people)
    means = torch.stack(
        [torch.from_numpy(photos.embeddings(np.flatnonzero(photos.people == s))).mean(0) for s in seeds]
    )
    truth = (means - means.mean(0)) @ torch.randn(512, shape.numel(), generator=rng)
    given = reader_config(gain=3.0, ridge=1e-3, tokens=1e-3).reader
    read = reader._Regression(given, photos, task.seen, seeds, truth.unflatten(1, shape))
    answers = read(np.arange(len(photos))).flatten(1)
    wanted = truth[np.searchsorted(seeds, photos.people)]
    cosine = torch.nn.functional.cosine_similarity(answers, wanted, dim=1)
    assert cosine.min() > 0.9
    assert (answers.norm(dim=1) / wanted.norm(dim=1)).mean() == pytest.approx(3, rel=0.2), "the gain"


def test_its_export_reads_both_conditions(trained, sources, tmp_path):  # noqa: F811
    task = reader.make_task(reader_config(), sources, "x")
    hyper = load_hyperlora(reader.export(sources, "id-reader", tmp_path / "hyper_lora"))
    assert hyper.has_base and hyper.uses_id_embeds
    batch = task.batch(loop.Draw(np.random.default_rng(0), 4, torch.device("cpu")))
    read = [hyper.coefficients(batch["clip"][i : i + 1], batch["embedding"][i : i + 1]) for i in range(4)]
    error = torch.stack(
        [(one - wanted).square().mean() for one, wanted in zip(read, batch["coefficients"], strict=True)]
    )
    assert error.mean() / task.module.variance < 0.5
    other_face = hyper.coefficients(batch["clip"][:1], batch["embedding"][-1:])
    other_tokens = hyper.coefficients(batch["clip"][-1:], batch["embedding"][:1])
    assert not torch.equal(read[0], other_face) and not torch.equal(read[0], other_tokens)


@pytest.mark.parametrize(("read", "other"), [("embedding", "clip"), ("clip", "embedding")])
def test_a_reader_of_one_condition_is_blind_to_the_other(trained, sources, tmp_path, read, other):  # noqa: F811
    given = reader_config(conditions=(read,), trains=(read, "trunk"), steps=20)
    name = f"{read}-alone"
    task = reader.make_task(given, sources, name)
    before = loss_on(task)
    loop.train(task, given, sources.root / name, "cpu")
    assert loss_on(task) < before
    hyper = load_hyperlora(reader.export(sources, name, tmp_path / "hyper_lora"))
    seen = reader.make_task(reader_config(), sources, "x").seen(np.array([0, len(task.photos) - 1]))
    mixed = {condition: values[[0]] for condition, values in seen.items()}

    def read_of(**changed):
        of = mixed | changed
        return hyper.coefficients(of["clip"], of["embedding"])

    assert torch.equal(read_of(), read_of(**{other: seen[other][[1]]}))
    assert not torch.equal(read_of(), read_of(**{read: seen[read][[1]]}))


def test_the_papers_stage_goes_on_from_the_reader(trained, sources, tmp_path):  # noqa: F811
    given = short("id-embedding", start=("base-lora", "id-people", "id-reader"), steps=2)
    task = stage.make_task(given, sources, "x")
    values = Trained(sources.root / "id-reader" / loop.CHECKPOINT).values
    own = dict(task.module.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in values.items())
    assert loop.train(task, given, tmp_path, "cpu") == 2


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (stage, {"conditions": ("people", "clip")}, "beside which no photo is read"),
        (stage, {"people": None}, "must have a section .people."),
        (stage, {"people": 1}, "people.people is 1: what makes people differ"),
        (stage, {"code": 0}, "people.code is 0: a code has 1 to 512 numbers"),
        (stage, {"people": 50}, f"people.people is 50, but the training pictures show {PEOPLE} people"),
        (stage, {"trains": ("bases", "trunk")}, "stage.trains names trunk, which nothing goes through"),
        (words_config, {"words": ("old", "old")}, r"words.words must be some of .*, not \['old', 'old'\]"),
        (words_config, {"words": ("hat",)}, r"words.words must be some of smiling, glasses, old, not \['hat'\]"),
        (words_config, {"words": ()}, r"words.words must be some of smiling, glasses, old, not \[\]"),
        (words_config, {"untold": 0.0}, "words.untold is a chance above 0, up to 1, not 0.0"),
        (words_config, {"trains": ("bases",)}, "nothing else is trained: leave bases out of stage.trains"),
        (words_config, {"start": ("base-lora",)}, "base-lora holds no codes of these people"),
        (words_config, {"conditions": ("clip",)}, "stage.conditions names people, beside which no photo is read"),
        (reader, {"start": ()}, "reader.start must end with"),
        (reader, {"start": ("base-lora",)}, "holds no people's own coefficients"),
        (reader, {"ridge": 0.0}, "must be above 0"),
        (reader, {"conditions": ("face",)}, "reader.conditions must be one or both of"),
        (reader, {"conditions": ("clip",)}, "reader.trains names embedding, which nothing goes through"),
    ],
)
def test_what_doesnt_fit_is_told(trained, sources, make, changes, said):  # noqa: F811
    if make is reader:
        given = reader_config(**changes)
    elif make is words_config:
        given, make = words_config(**{key: value for key, value in changes.items() if key != "words"}), stage
        given = dataclasses.replace(
            given, words=dataclasses.replace(given.words, words=changes.get("words", given.words.words))
        )
    else:
        people = changes.get("people", OWN)
        given = people_config(
            people or OWN, **{key: value for key, value in changes.items() if key not in ("people", "code")}
        )
        own = dataclasses.replace(given.people, code=changes.get("code", 8))
        given = dataclasses.replace(given, people=own if people else None)
    with pytest.raises(HyperLoRAError, match=said):
        make.make_task(given, sources, "x")


def test_likeness_looks_at_a_reader(trained, sources):  # noqa: F811
    task = likeness.trained_stage(sources, "id-reader")
    given = Trained(sources.root / "id-reader" / loop.CHECKPOINT).values
    own = dict(task.module.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in given.items())
    by_whose, *_ = likeness.errors(task, 0)
    assert (by_whose[likeness.RIGHT] - by_whose[likeness.OTHER]).abs().max() > 1e-5


def test_people_without_a_reader_are_not_exported(trained, sources, tmp_path):  # noqa: F811
    with pytest.raises(HyperLoRAError, match="fit a reader to it"):
        stage.export(sources, "id-people", tmp_path)
    assert Trained(sources.root / "id-people" / loop.CHECKPOINT).values[CODES].shape[0] == OWN


def test_codes_begin_at_what_the_embedding_tells_reliably(trained, sources):  # noqa: F811
    task = stage.make_task(people_config(), sources, "x")
    people, photos = task.module.people, task.photos
    rows = people.rows(photos.people)
    who = people.numbers(photos.people[rows]).numpy()
    embeds = photos.embeddings(rows).astype(np.float64)  # as there: four people leave most directions undecided
    read = embeds @ reliable_directions(embeds, who, people.codes.shape[1])
    assert np.allclose(means_by(read, who), people.codes.detach(), atol=1e-4)


def test_reliable_directions_are_those_in_which_people_differ():
    """300 people, 3 photos each: of 40 directions mixed at random, 5 tell people apart, the others only photos."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(300), 3)
    person, photo = rng.standard_normal((300, 5)), rng.standard_normal((900, 40))
    told = 0.9**0.5 * person[who] + 0.1**0.5 * photo[:, :5]
    mixing = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    embeds = np.concatenate([told, 2 * photo[:, 5:]], 1) @ mixing
    codes = (embeds - embeds.mean(0)) @ reliable_directions(embeds, who, 10)
    assert codes[:, :5].var(0) == pytest.approx(np.full(5, 0.9), abs=0.05), "the share between people"
    assert codes[:, 5:].var(0).max() < 0.4, "chance among 35 directions"
    found = np.linalg.lstsq(codes[:, :5], person[who], rcond=None)
    assert 1 - (found[1] / (person[who] - person[who].mean(0)).var(0) / 900).mean() > 0.85


def test_trained_coefficients_are_those_of_the_stage(trained, sources):  # noqa: F811
    values = Trained(sources.root / "id-people" / loop.CHECKPOINT).values
    task = stage.make_task(people_config(), sources, "x")
    task.module.load_state_dict(values, strict=False)
    own = task.module.people(torch.arange(OWN)).detach()
    assert torch.allclose(own[..., 1:] / own[..., :1], trained_coefficients(values), atol=1e-5)
    assert trained_coefficients({}) is None


@pytest.mark.parametrize("untold", [0.3, 1.0])
def test_a_word_is_told_by_the_caption_or_by_its_coefficients(trained, sources, untold):  # noqa: F811
    task = stage.make_task(words_config(untold), sources, "x")
    rows, names = np.tile(task.rows, 20), list(PASSING)
    captions, told = task._told(rows, loop.Draw(np.random.default_rng(0), len(rows), torch.device("cpu")))
    photos = words_shown(task.photos.captions(rows), names)
    assert photos.any(0).all() and not photos.all(0).any()
    assert torch.equal(words_shown(captions, names) + told["shown"], photos), "each once"
    assert told["shown"].sum() / photos.sum() == pytest.approx(untold, abs=0.1)
    batch = task.batch(loop.Draw(np.random.default_rng(0), 64, torch.device("cpu")))
    assert batch["shown"].any()


def test_captions_without_a_word_are_captions_of_scenes_without():
    rng, names = np.random.default_rng(0), list(PASSING)
    scenes = [Scene.random(rng, sketch=0.2, hat=0.5, glasses=0.5) for _ in range(200)]
    captions = [scene.caption() for scene in scenes]
    for n, word in enumerate(names):
        only = torch.zeros(len(captions), len(names))
        only[:, n] = 1
        wanted = [dataclasses.replace(scene, **{word: False}).caption() for scene in scenes]
        assert leave_out(captions, names, only) == wanted and wanted != captions
    nothing = [dataclasses.replace(scene, **dict.fromkeys(names, False)).caption() for scene in scenes]
    assert leave_out(captions, names, torch.ones(len(captions), len(names))) == nothing


def test_words_are_found_whole():
    captions = ["portrait of an old person with glasses", "portrait of a person, gold shirt, smiling", "sunglasses"]
    assert words_shown(captions, ["smiling", "glasses", "old"]).tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_words_learn_beside_people_who_stay_as_they_are(trained, sources):  # noqa: F811
    people, words = (Trained(sources.root / name / loop.CHECKPOINT).values for name in ("id-people", "id-words"))
    assert words.keys() == {WORDS} and words[WORDS].flatten(1).norm(dim=1).min() > 0, "each word was learned"
    task = stage.make_task(words_config(), sources, "x")
    own = dict(task.module.named_parameters())
    taken = {name for name in people if name in own}
    assert CODES in taken and any(name.startswith("network.basis.") for name in taken)
    assert all(torch.equal(own[name], people[name]) for name in taken)
    assert [name for name, parameter in own.items() if parameter.requires_grad] == [WORDS]
    assert not own[WORDS].any(), "as training begins, a word adds nothing"


def test_the_reader_is_told_of_people_and_of_what_each_photo_shows(trained, sources):  # noqa: F811
    task = reader.make_task(reader_config(), sources, "x")
    known = stage.people_known(sources.root, reader_config().reader.start)
    captions = task.photos.captions(np.arange(len(task.photos)))
    names, rows = list(PASSING), np.arange(len(captions))
    added = task.wanted(rows)[..., 1:] / task.wanted(rows)[..., :1] - task.read(rows)
    wanted = torch.einsum("nw,wlk->nlk", words_shown(captions, names), known[WORDS])
    assert torch.allclose(added, wanted, atol=1e-4) and wanted.any()
    people = stage.make_task(words_config(), sources, "x").module.people
    people.words.data.copy_(known[WORDS])
    shown = torch.tensor([[1.0, 0.0, 1.0]]).expand(OWN, -1)
    both = with_room(theirs(known[CODES], known["people.directions"]) + known[WORDS][0] + known[WORDS][2])
    assert torch.allclose(people(torch.arange(OWN), shown), both, atol=1e-5), "as id-words itself has it"


def test_a_reader_without_words(trained, sources):  # noqa: F811
    task = reader.make_task(reader_config(start=("base-lora", "id-people")), sources, "x")
    rows = np.arange(4)
    assert not task.words and torch.equal(task.wanted(rows), with_room(task.read(rows)))
