"""The evaluation's numbers, on cases that can be worked out by hand."""

import dataclasses
import json

import numpy as np
import pytest

from hyperlora_core import HyperLoRAError
from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render
from hyperlora_core.evaluate.attributes import asked, right, shown
from hyperlora_core.evaluate.figures import Measured, along, difference, estimate, share
from hyperlora_core.evaluate.instruments import Readings
from hyperlora_core.evaluate.measures import Known, copy_paste, measured, ranks, score_pictures
from hyperlora_core.evaluate.people import Person, drawn_people
from hyperlora_core.evaluate.protocol import SHIPPED, chosen_methods, load_protocol

AXES = np.eye(3)


def test_ranks_count_ties_and_missing_faces_against_the_person():
    gallery = AXES
    pictures = np.array([
        [AXES[0], AXES[1]],  # person 0: found; taken for person 1
        [(AXES[1] + AXES[2]) / 2**0.5, 0.8 * AXES[1] + 0.6 * AXES[0]],  # a tie with person 2; found
        [np.zeros(3), -AXES[2]],  # no face; the least like
    ])  # fmt: skip
    # person 0's second picture is as unlike 0 as it is unlike 2: the tie counts
    assert ranks(pictures, gallery).tolist() == [[1, 3], [2, 1], [3, 3]]


def test_copy_paste_is_one_for_a_copy_and_minus_one_for_the_truth():
    photo, truth = AXES[0], AXES[1]
    middle = (photo + truth) / 2**0.5
    assert copy_paste(np.stack([photo, truth, middle, AXES[2]]), truth, photo) == pytest.approx([1, -1, 0, 0])


def test_shares_are_over_all_people_together():
    hits, tries = np.array([[1, 0], [3, 0]]), np.array([[1, 1], [4, 0]])
    assert estimate(share(hits, tries)).value == pytest.approx(4 / 6)
    assert estimate(share(np.array([[True, False], [True, True]]))).value == 0.75
    assert np.isnan(estimate(share(hits, np.zeros((2, 2)))).value)


def test_along_a_scale():
    columns = np.array([[0.3, 0.1, 0.7], [0.5, 0.1, 0.9]])  # means 0.4 between 0.1 and 0.8
    assert estimate(Measured(columns, along)).value == pytest.approx(3 / 7)


def test_intervals_are_the_bootstraps():
    certain = estimate(share(np.ones((10, 4))))
    assert certain == (1, 1, 1)
    rng = np.random.default_rng(0)
    people = rng.random((100, 1)) < 0.6
    figure = estimate(share(people))
    deviation = np.sqrt(figure.value * (1 - figure.value) / 100)  # a share's own, for 100 independent people
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert figure.low < figure.value < figure.high
    assert estimate(share(people)) == figure != estimate(share(people), seed=1)


def test_differences_are_between_the_same_people():
    rng = np.random.default_rng(0)
    one = rng.normal(0, 5, (50, 1))
    apart = difference(share(one + 0.1), share(one))
    assert apart == pytest.approx((0.1, 0.1, 0.1))
    alone = estimate(share(one))
    assert alone.high - alone.low > 1


def test_what_captions_say():
    everything = "portrait of an old person with glasses and an orange hat, smiling, striped red background, blue shirt"
    looks = {"glasses": "yes", "hat": "yes", "hat_colour": "orange", "smiling": "yes", "old": "yes",
             "background": "red", "background_kind": "striped", "shirt": "blue"}  # fmt: skip
    assert shown(everything) == {**looks, "sketch": "no"} and asked(everything) == looks
    assert asked("fcsks fxhks fhyks, portrait of a person, blue background, green shirt") == {
        "background": "blue",
        "shirt": "green",
    }
    assert shown("portrait of a person, blue background, green shirt")["background_kind"] == "plain"
    assert asked("portrait of a person") == {}
    sketch = shown("black and white sketch of a person with a hat")
    assert sketch["hat"] == "yes" and "hat_colour" not in sketch and "background" not in sketch
    assert right({"hat": "yes", "shirt": "red"}, {"hat": "yes", "shirt": "blue"}) == {"hat": True, "shirt": False}
    assert right({"shirt": "red"}, {}) == {"shirt": False}


def test_every_drawn_caption_is_read_back():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = Scene.random(rng)
        looks = shown(scene.caption())
        assert looks["glasses"] == ("yes" if scene.glasses else "no") and looks["old"] == ("yes" if scene.old else "no")
        assert looks["hat"] == ("yes" if scene.hat else "no")
        if not scene.sketch:
            assert (looks["background"], looks["background_kind"]) == (scene.background, scene.background_kind)
            assert looks["shirt"] == scene.shirt and looks.get("hat_colour") == scene.hat


PROMPTS = ("portrait of a person with glasses, blue background, red shirt", "portrait of a person, green background")


def hand_made(seen, embeddings, clip=None):
    """Readings of two people's two pictures each."""
    embeddings, clip = np.array(embeddings, float), np.ones((4, 1)) if clip is None else np.array(clip, float)
    return Readings(embeddings, seen, clip, clip * embeddings.any(1)[:, None], np.arange(4.0))


def person(name):
    picture = np.zeros((2, 2, 3), np.uint8)
    looks = {"background": "pink", "shirt": "white"}
    return Person(name, (picture,), looks, picture, {"scenes": PROMPTS}, (picture, picture), (1, 2), ("0", "1"))


def test_scores_of_two_people():
    people, known = [person("a"), person("b")], Known(AXES[:2], AXES[[0, 2]], np.full((2, 1), 0.8))
    good = {"glasses": "yes", "background": "blue", "shirt": "red"}
    base_seen = [good, {"background": "green"}, {**good, "glasses": "no"}, {"background": "pink"}]
    none = score_pictures(people, "scenes", hand_made(base_seen, [AXES[2]] * 4), known)
    seen = [
        {**good, "shirt": "white"},
        {"background": "green"},
        {**good, "background": "pink"},
        {"background": "green"},
    ]
    # the third picture shows no face
    method = hand_made(seen, [AXES[0], AXES[1], np.zeros(3), AXES[1]], clip=[[1], [1], [0.5], [0.5]])
    base = hand_made(base_seen, [AXES[2]] * 4)
    texts = {PROMPTS[0]: np.array([0.5]), PROMPTS[1]: np.array([0.25])}
    rows = score_pictures(people, "scenes", method, known, base, texts)
    truth = score_pictures(people, "scenes", hand_made(seen, [AXES[0], AXES[0], AXES[1], AXES[1]]), known)
    kinds = {PROMPTS[0]: "accessories", PROMPTS[1]: "background"}
    figures = {name: estimate(of).value for name, of in measured(rows, none, truth, edits=True, kinds=kinds).items()}
    assert [[score.rank for score in row] for row in rows] == [[1, 2], [2, 1]]
    assert figures["retrieval"] == 0.5 and figures["faces"] == 0.75 and figures["cosine"] == 0.5
    assert figures["similarity"] == pytest.approx(0.5)  # cosines 0 without, 1 true
    assert figures["CLIP-I"] == pytest.approx(0.75)
    # texts 0.5 and 0.25, pictures 1, 1 and 0.5, 0.5
    assert figures["CLIP-T"] == pytest.approx((0.5 + 0.25 + 0.25 + 0.125) / 4)
    assert figures["CLIP-T, accessories"] == pytest.approx((0.5 + 0.25) / 2)
    assert figures["CLIP-T, background"] == pytest.approx((0.25 + 0.125) / 2)
    # the first photos are axis 0 and axis 2; a picture without a face counts 0
    assert figures["ID Sim"] == pytest.approx(1 / 4)
    assert figures["fidelity"] == pytest.approx(0.8 * (1 + 1 + 0 + 0.5) / 4)
    assert figures["sharpness"] == 1.5
    assert figures["prompt"] == pytest.approx(6 / 8)  # asked: 3 + 1 of each person; wrong: one shirt, one background
    # the base model has 3 + 1 and 2 + 0 right; kept: 2 + 1 and 1 (the shirt)
    assert figures["editability"] == pytest.approx(4 / 6)
    assert figures["editability, shirt"] == 0.5 and figures["editability, glasses"] == 1
    assert figures["editability, background"] == pytest.approx(2 / 3)
    assert figures["carried"] == pytest.approx(2 / 8)  # a's white shirt once, b's pink background once
    assert rows[0][0].copied == pytest.approx(0, abs=1e-6) and np.isnan(rows[1][0].copied)
    assert "editability" not in measured(rows, none, truth, edits=False)
    # photographs: nobody reads colours, there is no other true picture, and no gallery photo
    photographed = [dataclasses.replace(of, looks={}, gallery=None) for of in people]
    alone = score_pictures(photographed, "scenes", method._replace(looks=[None] * 4), known)
    without = {name: estimate(of).value for name, of in measured(alone, None, None, edits=True).items()}
    assert not {"similarity", "editability"} & set(without)
    assert all(np.isnan(without[name]) for name in ("prompt", "carried", "copy-paste", "CLIP-I", "CLIP-T"))
    assert without["ID Sim"] == figures["ID Sim"]


def test_people_are_the_seeds_and_nothing_they_are_asked_for_is_in_their_photo():
    protocol = load_protocol()
    people = drawn_people(3, 1, protocol.prompts, protocol.chances)
    more = drawn_people(4, 3, {"scenes": protocol.prompts["scenes"]}, protocol.chances)
    for one, other in zip(people, more, strict=False):
        assert np.array_equal(one.photos[0], other.photos[0]) and np.array_equal(one.gallery, other.gallery)
        assert one.prompts["scenes"] == other.prompts["scenes"] and one.noise == other.noise
        assert not np.array_equal(other.photos[0], other.photos[1])
    other_seed = drawn_people(2, 1, protocol.prompts, protocol.chances, seed=1)
    assert not np.array_equal(people[0].photos[0], other_seed[0].photos[0]) and people[0].noise != other_seed[0].noise
    assert len({seed for one in more for seed in one.noise}) == 4 * 4
    for one in more:
        for prompt, picture in zip(one.prompts["scenes"], one.renders, strict=True):
            assert not any(right(asked(prompt), one.looks).values())
            assert picture.shape == (128, 128, 3)
    # the renders show who they should, in the prompts' scene
    who, prompt = Identity.from_seed(HELD_OUT[0]), people[0].prompts["scenes"][3]
    drawn = render(who, Scene.random(np.random.default_rng([0, HELD_OUT[0], 3, 3])).told(prompt))
    assert np.array_equal(drawn.image, people[0].renders[3]) and set(asked(prompt).items()) <= set(
        shown(drawn.caption).items()
    )
    with pytest.raises(HyperLoRAError, match="at least 2"):
        drawn_people(1, 1, protocol.prompts, protocol.chances)


def test_prompts_of_the_protocol_are_what_training_captions_look_like():
    """A prompt that names nothing that could be read would count nowhere."""
    protocol = load_protocol()
    for picture, wanted in zip(
        protocol.prompts["scenes"], (set(), {"glasses"}, {"hat"}, {"glasses", "hat"}), strict=True
    ):
        for prompt in picture:
            named = asked(prompt)
            assert {"background", "shirt"} | wanted <= set(named)
            assert set(named) & {"glasses", "hat"} == wanted
            assert Scene().told(prompt).caption() == prompt  # the vocabulary and the order of the drawn captions


def test_methods():
    protocol = load_protocol()
    methods = chosen_methods(protocol, ["full"], {"half K": "runs/half"}, ["full", "ID only"], 0.7, 0.2)
    assert [method.name for method in methods] == ["none", "full", "half K, full", "half K, ID only"]
    none, full, _, id_only = methods
    assert (none.id_weight, none.base_weight, full.id_weight, full.base_weight) == (0, 0, 0.7, 0.2)
    assert (id_only.checkpoint, id_only.id_weight, id_only.base_weight) == ("runs/half", 0.7, 0)
    assert chosen_methods(protocol)[0].name == "none"
    guided = [method.name for method in chosen_methods(protocol) if method.guide]
    assert guided == ["ID only, guided", "full, guided", "three photos, guided"]
    with pytest.raises(HyperLoRAError, match=r'no method "fulll".*full, three photos'):
        chosen_methods(protocol, ["fulll"])
    with pytest.raises(HyperLoRAError, match='Two rows would be called "full"'):
        chosen_methods(protocol, ["full"], {"full": "runs/x"})


@pytest.mark.parametrize("spoil", ["[", "{}", '{"photos": {}, "prompts": {}, "methods": {}, "comparisons": []}', None])
def test_bad_protocols(spoil, tmp_path):
    path = tmp_path / "mine.json"
    if spoil is not None:
        path.write_text(spoil)
    with pytest.raises(HyperLoRAError, match=r"mine\.json can't be read as a protocol"):
        load_protocol(path)


def test_a_protocol_whose_method_names_an_unknown_set(tmp_path):
    table = json.loads(SHIPPED.read_text())
    table["methods"]["full"]["prompts"] = "scnes"
    (tmp_path / "mine.json").write_text(json.dumps(table))
    with pytest.raises(HyperLoRAError, match="set of prompts"):
        load_protocol(tmp_path / "mine.json")
