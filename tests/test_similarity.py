"""How like a person pictures are, and pictures side by side."""

import numpy as np
import pytest
from people import photo_of, side_by_side
from PIL import Image

from hyperlora_core import FaceAnalyzer, HyperLoRAError, NoFaceError
from hyperlora_core.compare import Column, column_labels, comparison, report
from hyperlora_core.evaluate.grid import GOOD
from hyperlora_core.locate import demo_folder
from hyperlora_core.similarity import Similarity, mean_similarity, person_embedding, similarities

pytest.importorskip("insightface")

EMPTY = Image.new("RGB", (192, 192), (120, 130, 140))


@pytest.fixture(scope="module")
def faces():
    return FaceAnalyzer.load(demo_folder() / "face")


@pytest.fixture(scope="module")
def anna(faces):
    return person_embedding(faces, [photo_of(0, scene, 192) for scene in (0, 1)])


def test_the_same_person_is_more_like_than_another(faces, anna):
    steps = []
    pictures = [photo_of(0, 5, 192), photo_of(1, 5, 192), EMPTY]
    same, other, nobody = similarities(faces, anna, pictures, lambda done, total: steps.append((done, total)))
    assert same.cosine > 0.4 > 0.3 > other.cosine
    assert (same.faces, nobody.faces, nobody.cosine, nobody.value) == (1, 0, None, 0)
    assert nobody.words == "no face found" and same.words == f"similarity {same.cosine:.2f}"
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert mean_similarity([same, nobody]) == pytest.approx(same.cosine / 2)


def test_of_several_faces_the_nearest_counts(faces, anna):
    (both,) = similarities(faces, anna, [side_by_side(photo_of(1, 5, 192), photo_of(0, 5, 192))])
    assert both.faces == 2 and both.cosine > 0.4 and "nearest of 2 faces" in both.words


def test_references_that_say_nothing(faces):
    with pytest.raises(NoFaceError, match="reference photo 2"):
        person_embedding(faces, [photo_of(0, 0, 192), EMPTY])
    with pytest.raises(HyperLoRAError, match="no reference photo"):
        person_embedding(faces, [])


def picture(height: int, width: int, colour=(90, 90, 90)) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def columns() -> list[Column]:
    return [
        Column("without", [picture(64, 48), picture(64, 48)], [Similarity(0.1, 1), Similarity(None, 0)]),
        Column("with HyperLoRA", [picture(64, 48)], [Similarity(0.6, 1)]),
    ]


def test_a_sheet_has_a_column_each_and_marks_the_best():
    sheet = comparison(columns(), side=128)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 2 * 96
    assert sheet.shape[0] > 2 * 128
    right = sheet[:, 96:].reshape(-1, 3)
    assert (right == GOOD).all(1).any() and not (sheet[:, :96].reshape(-1, 3) == GOOD).all(1).any()
    photo = Column("photo", [picture(64, 48)], [Similarity(1.0, 1)])
    assert (comparison([photo, columns()[1]], 128)[:, 96:].reshape(-1, 3) == GOOD).all(1).any()
    # the second column has no second picture
    lower = sheet[-(128 + 16) :, 96:]
    assert (lower == 255).all()


def test_a_picture_without_a_face_is_never_the_best():
    strangers = [Column(str(cosine), [picture(64, 48)], [Similarity(cosine, 1)]) for cosine in (-0.05, -0.2, None)]
    sheet = comparison(strangers, side=128)
    green = [(part.reshape(-1, 3) == GOOD).all(1).any() for part in np.split(sheet, 3, axis=1)]
    assert green == [True, False, False]


def test_pictures_of_another_form_are_shown_whole():
    red = (200, 0, 0)
    sheet = comparison([Column("a", [picture(100, 100)]), Column("b", [picture(50, 100, red)])], side=100)
    shown = (sheet == red).all(2)
    assert shown.any(1).sum() == 50 and shown.any(0).sum() == 100


def test_report_in_words():
    assert report(columns()) == "without: 0.10, no face; mean 0.05\nwith HyperLoRA: 0.60"
    assert report([Column("a", [picture(8, 8)])]) == ""


def test_labels():
    assert column_labels("", 3) == ["A", "B", "C"]
    assert column_labels("photo\n\nHyperLoRA\n", 4) == ["photo", "B", "HyperLoRA", "D"]
    with pytest.raises(HyperLoRAError, match=r'3 labels for 2 column.*"c" has none'):
        column_labels("a\nb\nc", 2)


def test_long_labels_take_several_lines():
    short, long = (
        comparison([Column(label, [picture(64, 64)])], side=64) for label in ("one", "one label of very many words")
    )
    assert long.shape[0] > short.shape[0] and long.shape[1] == short.shape[1]


def test_a_sheet_that_no_viewer_shows():
    with pytest.raises(HyperLoRAError, match="choose a smaller picture size"):
        comparison([Column("a", [picture(64, 64)] * 20)], side=1024)
