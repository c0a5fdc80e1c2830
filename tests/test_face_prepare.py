"""The pictures for the encoders equal the reference's; which face is meant; landmarks that don't fit are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from hyperlora_core.errors import HyperLoRAError
from hyperlora_core.face import base_picture, choose_face, face_box, identity_picture, recognition_picture
from hyperlora_core.face.analyzer import Face
from hyperlora_core.face.draw import CHOSEN, OTHER, annotate
from hyperlora_core.vision import clip_pixels

FIXTURES = Path(__file__).parent / "fixtures" / "preprocess"
CASES = ("0", "1", "2")  # a face within the photo, one across the top edge, one across the top left corner


@pytest.fixture(scope="module")
def photo():
    return np.asarray(Image.open(FIXTURES / "photo.png").convert("RGB"))


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURES / "expected.safetensors")


def distance(picture, pixel_values):
    return float(np.abs(clip_pixels(picture).numpy() - pixel_values.astype(np.float32)).mean())


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_identity_picture_equals_the_reference(photo, expected, case, grey, background):
    key = f"{case}.id.gray{grey:d}.bg{background:d}"
    picture = identity_picture(photo, expected[f"{case}.landmarks"], remove_background=background, grayscale=grey)
    # the reference shows its crop through two bicubic steps: every pixel is the same
    shown = Image.fromarray(picture).resize((512, 512), Image.Resampling.BICUBIC)
    shown = np.asarray(shown.resize((256, 256), Image.Resampling.BICUBIC))
    assert np.abs(shown.astype(int) - expected[f"{key}.face"]).max() <= 1
    # Pillow's versions round differently: measured below 0.0003
    assert distance(picture, expected[f"{key}.pixel_values"]) < 0.001


@pytest.mark.parametrize("case", CASES)
def test_base_picture_equals_the_reference(photo, expected, case):
    picture = base_picture(photo, expected[f"{case}.landmarks"])
    assert (picture.shape[1], picture.shape[0]) == tuple(expected[f"{case}.base.crop_size"])
    assert distance(picture, expected[f"{case}.base.pixel_values"]) < 0.001


def test_variants_differ(photo, expected):
    """The check above can fail: the wrong variant is far away."""
    landmarks = expected["0.landmarks"]
    for key in ("0.id.gray0.bg0", "0.id.gray1.bg1"):
        assert distance(identity_picture(photo, landmarks), expected[f"{key}.pixel_values"]) > 0.05


def test_a_large_photo_gives_the_same_pictures(photo, expected):
    """Only the surroundings of the face are worked on; moving the face in a larger photo changes nothing."""
    landmarks = expected["0.landmarks"]
    large = np.pad(photo, ((0, 900), (700, 800), (0, 0)))
    moved = landmarks + np.float32([700, 0])
    for picture in (identity_picture, base_picture, recognition_picture):
        assert np.abs(picture(large, moved).astype(int) - picture(photo, landmarks)).max() <= 1, picture.__name__


def test_inputs_stay_as_they_are(photo, expected):
    before, landmarks = photo.copy(), expected["0.landmarks"].copy()
    identity_picture(photo, landmarks)
    base_picture(photo, landmarks)
    assert (photo == before).all() and (landmarks == expected["0.landmarks"]).all()


def test_crop_scale_moves_each_side(photo, expected):
    landmarks = expected["0.landmarks"]
    x0, y0, x1, _ = face_box(landmarks)
    half = (x1 - x0) / 2
    height, width = base_picture(photo, landmarks, (1.2, 0.5, 0.6, 1.5)).shape[:2]
    assert width == pytest.approx(1.7 * half, abs=1)
    assert height == pytest.approx(2.1 * half, abs=1)
    free = base_picture(photo, landmarks, clip_to_photo=False)
    assert free.shape[0] == free.shape[1] == pytest.approx(2 * half, abs=1)
    assert not free[: int(-y0) - 1].any(), "black above the photo"


def test_recognition_picture_is_twice_as_wide(photo, expected):
    x0, _, x1, _ = face_box(expected["0.landmarks"])
    assert recognition_picture(photo, expected["0.landmarks"]).shape[:2] == (pytest.approx(2 * (x1 - x0), abs=1),) * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m: (p, m[:68]), "106 landmarks"),
        (lambda p, m: (p, m * np.nan), "finite"),
        (lambda p, m: (p, m + 5000), "don't lie on this photo"),
        (lambda p, m: (p, m * 0 + 100), "don't lie on this photo"),
        (lambda p, m: (p, m * 1e6), "don't lie on this photo"),
        (lambda p, m: (p[..., 0], m), r"uint8 \[h, w, 3\]"),
        (lambda p, m: (p / 255, m), r"uint8 \[h, w, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(photo, expected, change, message):
    image, landmarks = change(photo, expected["0.landmarks"])
    for picture in (identity_picture, base_picture, recognition_picture):
        with pytest.raises(HyperLoRAError, match=message):
            picture(image, landmarks)


def test_a_crop_of_nothing_is_refused(photo, expected):
    with pytest.raises(HyperLoRAError, match="leaves nothing"):
        base_picture(photo, expected["0.landmarks"], (0, 0, 0, 0))


# three faces in a photo of 300 x 100: small at the left, large at the right, middle one nearest to the centre
BOXES = [(200, 10, 290, 90), (0, 40, 20, 60), (130, 40, 160, 70)]


@pytest.mark.parametrize(
    ("which", "index"),
    [("largest", 0), ("centre", 2), ("left", 1), ("right", 0), (0, 1), (1, 2), (2, 0), ("1", 2)],
)
def test_choose_face(which, index):
    assert choose_face(BOXES, which, (300, 100)) == index


def test_choices_that_do_not_exist():
    with pytest.raises(HyperLoRAError, match="Face 3 doesn't exist: Photo 2 shows 3 faces; use 0 to 2"):
        choose_face(BOXES, 3, (300, 100), "Photo 2")
    with pytest.raises(HyperLoRAError, match="Face -1 doesn't exist"):
        choose_face(BOXES, -1, (300, 100))
    with pytest.raises(HyperLoRAError, match="shows 1 face; only number 0 exists"):
        choose_face(BOXES[:1], 1, (300, 100))
    with pytest.raises(HyperLoRAError, match='"oldest" is none of largest'):
        choose_face(BOXES, "oldest", (300, 100))


def test_every_face_keeps_its_number_in_the_picture(photo, expected, monkeypatch):
    """Whichever is chosen: the number is what users type into face_index."""
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _self, _at, text, fill, **_: written.append((text, fill)))
    boxes = [np.array([20.0 * i, 5, 20 * i + 15, 25]) for i in range(3)]
    points = np.stack([np.linspace(41, 54, 106), np.linspace(6, 24, 106)], 1).astype(np.float32)
    picture = annotate(photo, boxes, {2: Face(boxes[2], 0.9, points[:5], points, np.zeros(512, np.float32))})
    assert written == [("0", OTHER), ("1", OTHER), ("2", CHOSEN)]
    assert (picture[5, 0:15] == OTHER).all() and (picture[5, 40:55] == CHOSEN).all()
