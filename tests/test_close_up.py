import numpy as np
import pytest

from hyperlora_core import HyperLoRAError
from hyperlora_core.face.analyzer import Face
from hyperlora_core.face.close_up import FACTOR, around, soften


def face(left: float, top: float, right: float, bottom: float) -> Face:
    nothing = np.zeros((0, 2))
    return Face(np.array([left, top, right, bottom]), 1.0, nothing, nothing, nothing)


def test_the_face_is_in_the_middle_with_room_around():
    square = around([face(400, 200, 480, 300)], (1000, 800))
    assert square.side == FACTOR * 100
    assert (square.x + square.side / 2, square.y + square.side / 2) == (440, 250)


@pytest.mark.parametrize("box", [(-30, -40, 90, 60), (700, 900, 830, 1020), (0, 0, 800, 1000)])
def test_the_square_stays_inside_the_picture(box):
    picture = np.arange(1000 * 800).reshape(1000, 800)
    square = around([face(*box)], picture.shape)
    assert square.cut(picture).shape == (square.side, square.side)
    assert square.x >= 0 and square.y >= 0 and square.x + square.side <= 800 and square.y + square.side <= 1000
    middle = np.clip([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], 0, [799, 999])
    assert square.x <= middle[0] <= square.x + square.side and square.y <= middle[1] <= square.y + square.side


def test_several_faces_are_all_inside():
    square = around([face(100, 100, 150, 150), face(500, 300, 550, 350)], (1000, 1000))
    assert square.x <= 100 and square.y <= 100
    assert square.x + square.side >= 550 and square.y + square.side >= 350


def test_faces_too_far_apart_for_a_square_are_told():
    far = [face(70, 400, 230, 560), face(1306, 400, 1466, 560)]
    with pytest.raises(HyperLoRAError, match="2 faces lie too far apart for a close-up in this picture of 1536 x 1024"):
        around(far, (1024, 1536))
    assert around(far, (1400, 1536)).side == 1400


@pytest.mark.parametrize("size", [(1000, 800), (300, 900)])
def test_without_a_face_the_largest_square_in_the_middle(size):
    square = around([], size)
    assert square.side == min(size)
    assert (square.y + square.side / 2, square.x + square.side / 2) == (size[0] / 2, size[1] / 2)


def test_a_softened_mask_keeps_the_face_and_fades_out_around_it():
    mask = np.zeros((200, 200), np.uint8)
    mask[60:140, 70:130] = 255
    soft = soften(mask)
    assert (soft[mask == 255] == 255).all()
    row = soft[100, :71].astype(int)
    assert row[0] == 0 and (np.diff(row) >= 0).all() and 20 < row[66] < 250
    assert not soften(np.zeros((50, 50), np.uint8)).any()
