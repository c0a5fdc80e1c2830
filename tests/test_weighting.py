"""Which of several photos count more; one wrong person among them."""

import numpy as np
import pytest
import torch
from people import photo_of
from PIL import Image, ImageFilter

from hyperlora_core import FaceAnalyzer, HyperLoRAError, open_encoder
from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render
from hyperlora_core.face.analyzer import Face
from hyperlora_core.locate import demo_folder
from hyperlora_core.weighting import LEAST, Quality, by_agreement, by_quality, quality, sharpness

pytest.importorskip("insightface")

PEOPLE, PHOTOS = 8, 5
SIZE = 256  # px, of the detector's input: enough for a portrait, and fast


def directions(*rows: list[float]) -> np.ndarray:
    rows = np.array(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ANNA, BEN = [1, 0, 0, 0], [0, 1, 0, 0]


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """[people, photos, 512] of people whom no network has seen, in all sorts of scenes."""
    faces = FaceAnalyzer.load(demo_folder() / "face")
    rows = []
    for number in range(PEOPLE):
        rng = np.random.default_rng([3, number])
        person = Identity.from_seed(HELD_OUT[600 + number])
        for _ in range(PHOTOS):
            photo = render(person, Scene.random(rng, sketch=0), size=192).image
            rows.append(faces.describe(photo, faces.detect(photo, (SIZE,))[0]).embedding)
    return np.stack(rows).reshape(PEOPLE, PHOTOS, -1)


def mean(embeddings: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The mean direction."""
    total = np.average(embeddings, axis=0, weights=weights)
    return total / np.linalg.norm(total)


def test_a_wrong_person_among_five_photos_spoils_nothing(embeddings):
    right, probes = embeddings[:, :4], embeddings[:, 4]
    wrong_shares, like_right, equal_like_right, found = [], [], [], []
    for number in range(PEOPLE):
        photos = np.concatenate([right[number], right[(number + 1) % PEOPLE, :1]])
        weights = by_agreement(photos).weights
        wrong_shares.append(weights[4] / weights.sum())
        like_right.append(mean(photos, weights) @ mean(right[number]))
        equal_like_right.append(mean(photos) @ mean(right[number]))
        found.append(np.argmax(probes @ mean(photos, weights)) == number)
    assert max(wrong_shares) < 0.02  # a fifth, if all counted alike
    assert min(like_right) > 0.95
    assert np.mean(like_right) > np.mean(equal_like_right)
    assert sum(found) >= PEOPLE - 1


def test_right_photos_are_kept(embeddings):
    """The price where nothing is wrong: little weight is taken from true photos, and never a whole person."""
    weights = np.stack([by_agreement(photos).weights for photos in embeddings])
    assert weights.mean() > 0.85
    assert (weights.max(1) == 1).all()


def test_two_wrong_among_five_and_one_among_three():
    two = by_agreement(directions(ANNA, BEN, ANNA, BEN, ANNA))
    assert two.weights.tolist() == [1, 0, 1, 0, 1] and two.summary == ""
    assert [remark.endswith("another person?") for remark in two.remarks] == [False, True, False, True, False]
    assert by_agreement(directions(ANNA, BEN, ANNA)).weights.tolist() == [1, 0, 1]


def test_weights_fall_with_similarity_and_not_with_the_order():
    photos = directions(ANNA, ANNA, ANNA, [0.6, 0.8, 0, 0], [0.55, 0, 0.835, 0])
    weights = by_agreement(photos).weights
    assert weights[:3].tolist() == [1, 1, 1] and 1 > weights[3] > weights[4] > 0
    assert np.allclose(by_agreement(photos[::-1]).weights, weights[::-1])


@pytest.mark.parametrize("photos", [[ANNA], [ANNA, BEN]])
def test_without_a_third_photo_nobody_is_outvoted(photos):
    verdict = by_agreement(directions(*photos))
    assert (verdict.weights == 1).all() and "three photos" in verdict.summary


def test_without_a_majority_all_count_and_it_is_said():
    for photos in ([ANNA, ANNA, BEN, BEN], [ANNA, BEN, [0, 0, 1, 0], [0, 0, 0, 1]]):
        verdict = by_agreement(directions(*photos))
        assert (verdict.weights == 1).all() and "no one person" in verdict.summary


def face(box=(40, 40, 200, 220), nose=0.5, score=0.9) -> Face:
    left, right = np.array([80.0, 100.0]), np.array([160.0, 100.0])
    keypoints = np.stack([left, right, left + nose * (right - left) + (0, 40), (100, 180), (140, 180)])
    return Face(np.array(box, np.float64), score, keypoints, np.zeros((106, 2), np.float32), np.zeros(512, np.float32))


def test_quality_falls_with_blur_size_turn_and_score():
    photo = np.asarray(photo_of(0))
    blurred = [np.asarray(photo_of(0).filter(ImageFilter.GaussianBlur(radius))) for radius in (1, 2, 4, 8)]
    sharp = [sharpness(picture, face().box) for picture in (photo, *blurred)]
    assert sharp == sorted(sharp, reverse=True) and sharp[-1] < 0.5 * sharp[0]
    darker = (photo * 0.5).astype(np.uint8)
    assert sharpness(darker, face().box) == pytest.approx(sharp[0], rel=0.1)

    good = quality(photo, face())
    assert good.frontality == pytest.approx(1) and good.size == 1 and good.detection == pytest.approx(0.9)
    assert quality(photo, face(nose=0.25)).frontality == pytest.approx(0.5)
    assert quality(photo, face(nose=1.4)).frontality == 0
    assert quality(photo, face(box=(90, 90, 146, 200))).size == pytest.approx(0.5)
    assert good.weight > quality(photo, face(nose=0.3)).weight > quality(photo, face(nose=1.4)).weight == LEAST
    beyond = quality(photo, face(box=(-30, -30, 300, 300)))
    assert np.isfinite(beyond.weight)


def test_quality_weights_and_words():
    verdict = by_quality([Quality(1, 1, 0.8, 1), Quality(0.5, 0.5, 0.8, 1)])
    assert verdict.weights == pytest.approx([0.8, 0.2])
    assert verdict.remarks[1].startswith("quality 0.20 (detection 0.50, size 0.50")


def test_shares_and_what_is_left():
    verdict = by_agreement(directions(ANNA, ANNA, ANNA, BEN))
    assert verdict.shares(torch.tensor([0.25] * 4)).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert verdict.shares(torch.tensor([0.5, 0.25, 0, 0.25])).tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    with pytest.raises(HyperLoRAError, match="takes for another person"):
        verdict.shares(torch.tensor([0.0, 0, 0, 1]))


@pytest.fixture(scope="module")
def encoder():
    return open_encoder("demo")


def test_encoding_by_agreement_leaves_the_wrong_photo_out(encoder):
    right = [photo_of(0, scene, 192) for scene in (0, 1, 5)]
    encoded = encoder.encode([*right, photo_of(1, 0, 192)], weighting="agreement")
    assert encoded.shares[:3] == pytest.approx([1 / 3] * 3, abs=0.1) and encoded.shares[3] == 0
    lines = encoded.report.splitlines()
    assert (
        len(lines) == 4 and lines[3].endswith("another person?; share 0%") and "similarity to the others 0." in lines[0]
    )
    wanted = encoder.encode(right, weights=encoded.shares[:3])
    assert torch.allclose(encoded.identity.coefficients, wanted.identity.coefficients, atol=1e-4)
    assert torch.allclose(encoded.identity.base_coefficients, wanted.identity.base_coefficients, atol=1e-4)
    assert wanted.shares == pytest.approx(encoded.shares[:3]) and "share" not in wanted.report


def test_encoding_by_quality_prefers_the_sharp_photo(encoder):
    sharp = photo_of(0, 0, 192)
    photos = [sharp, sharp.filter(ImageFilter.GaussianBlur(4))]
    encoded = encoder.encode(photos, weighting="quality")
    assert encoded.shares[0] > 0.6 and "quality 0." in encoded.report
    # beside the user's own weights
    assert encoder.encode(photos, weights=[0, 1], weighting="quality").shares == (0, 1)


def test_a_weighting_that_does_not_exist_and_weights_that_dont_fit(encoder):
    with pytest.raises(HyperLoRAError, match="'best' doesn't exist: use equal, quality, agreement"):
        encoder.encode([Image.new("RGB", (64, 64))], weighting="best")
    with pytest.raises(HyperLoRAError, match="don't fit 1 photo"):
        encoder.encode([Image.new("RGB", (64, 64))], weights=[1, 2])
