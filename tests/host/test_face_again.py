"""A face painted again and nothing else of the picture, for one person and for each of several, on the demo's models."""

import numpy as np
import pytest
from again import one_after_another, with_face_of
from bad_inputs import assert_sentence
from graphs import nodes_of
from people import photo_of, side_by_side
from PIL import Image

from hyperlora_core.evaluate.instruments import FACE_MEASURE, MeasuringNetwork
from hyperlora_core.locate import demo_folder, open_encoder

PEOPLE = 4, 5  # who come into the picture


def saved(server, graph: dict) -> np.ndarray:
    """What a run of the graph saves."""
    return server.run(graph).picture(*nodes_of(graph, "SaveImage"))


@pytest.fixture(scope="module")
def strangers():
    """Two people side by side, neither of whom is to stay."""
    return side_by_side(*(photo_of(person, size=128) for person in (2, 3)))


def test_each_person_in_the_picture_becomes_one_of_their_own(server, strangers):
    faces = MeasuringNetwork(demo_folder() / FACE_MEASURE, open_encoder("demo").faces)
    wanted = np.stack([faces.embed(np.asarray(photo_of(person))) for person in PEOPLE])

    def likeness(picture: np.ndarray) -> np.ndarray:
        """[2, 2]: the left and the right face, to each of both."""
        return np.stack([faces.embed(half) @ wanted.T for half in np.split(picture, 2, axis=1)])

    given = np.asarray(strangers)
    sides = zip(PEOPLE, ("left", "right"), strict=True)
    left, right = (with_face_of(server, photo_of(person), strangers, side) for person, side in sides)
    only_left = saved(server, left)
    assert np.abs(only_left[:, 128:].astype(int) - given[:, 128:]).max() <= 1, "the other one's half has changed"
    both = saved(server, one_after_another(left, right))
    assert np.abs(both[:, :128].astype(int) - only_left[:, :128]).max() <= 1
    assert (np.abs(both[:4].astype(int) - given[:4]) <= 1).all(), "around the faces the picture stays"
    before, now = likeness(given), likeness(both)
    for person in (0, 1):
        assert now[person, person] > before[person, person] + 0.1, (before, now)
        assert now[person].argmax() == person, now


def test_a_picture_without_a_face_is_told(server):
    """The template would otherwise hand back the picture as it was."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8))
    graph = with_face_of(server, photo_of(0), noise, "largest")
    result = server.run(graph)
    assert result.error and not result.outputs.get(*nodes_of(graph, "SaveImage"))
    assert_sentence(result.error, ("No face was found in Picture 1",))
    (find,) = nodes_of(graph, "HyperLoRADetectFaces")
    asked = {
        node: graph[node]
        for node in (find, *(value[0] for value in graph[find]["inputs"].values() if isinstance(value, list)))
    }
    asked[find]["inputs"]["without_face"] = "empty mask"
    asked["90"] = {"class_type": "PreviewAny", "inputs": {"source": [find, 3]}}
    assert server.run(asked).text("90") == "0"
