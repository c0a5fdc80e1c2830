"""Which photos serve for training, and the square that is cut from them.

The paper (section 4.1) says: portraits with one face that InsightFace finds, cropped at random with the face in view. Its
numbers are not published; these are ours, and all of them are options.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import HyperLoRAError
from ..face.analyzer import Detection

# the 2d106 network's points of the eye on the picture's left, of the other, and the tip of the nose
LEFT_EYE, RIGHT_EYE, NOSE_TIP = slice(33, 43), slice(87, 97), 86
NOSE_DEPTH = 0.53  # from the eyes forward to the tip, in distances between the eyes: InsightFace's mean 3-D face
FACE_HEIGHT = 0.42  # where in the square the face's middle lies, from the top: a portrait shows more below than above
OVERHANG = 0.05  # of the face's box, beyond the photo's edge, that is still no cut-off face
SHARPNESS_SIDE = 128  # px that a face is scaled to before its sharpness is measured


class Rejected(Exception):
    """This photo isn't used. `reason` is the same for all photos of a kind; `detail` tells of this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class PhotoRules:
    """What a photo must have. Pixels are the photo's own; "face" is the longer side of the detector's box."""

    size: int = 1024  # px, side of a training picture
    margin: float = 0.25  # the stored square is larger by this share: room for random crops
    surroundings: float = 4.0  # the square holds at most this many faces along its side
    min_face: int = 150  # px; below it CLIP's 224 px show an enlarged face
    min_share: float = 0.1  # of the photo's shorter side
    max_yaw: float = 50.0  # degrees that a head may be turned
    max_roll: float = 40.0  # degrees that it may be tilted
    min_sharpness: float = 0.0  # grey levels, see `sharpness`
    max_enlargement: float = 1.5  # of the square, to the stored size

    def __post_init__(self) -> None:
        """Raises HyperLoRAError for numbers that mean nothing."""
        limits = {
            "size": 64 <= self.size <= 4096 and self.size % 8 == 0,
            "margin": 0 <= self.margin <= 1,
            "surroundings": self.surroundings >= 1.5,
            "max_enlargement": self.max_enlargement > 0,
        }
        wrong = [f"{name} {getattr(self, name)}" for name, fine in limits.items() if not fine]
        if wrong:
            raise HyperLoRAError(
                f"Photos can't be prepared with {' and '.join(wrong)}: size must be a multiple of 8 from 64 to 4096, "
                "margin lie in 0..1, surroundings be at least 1.5, and max_enlargement more than 0."
            )

    @property
    def stored(self) -> int:
        """Side in pixels of the square that is kept."""
        return round(self.size * (1 + self.margin))


class Square(NamedTuple):
    """Whole pixels of the photo, all inside it."""

    x: int
    y: int
    side: int


class HeadPose(NamedTuple):
    """Degrees: `yaw` to the picture's right, `roll` clockwise."""

    yaw: float
    roll: float


def check_resolution(width: int, height: int, rules: PhotoRules) -> None:
    """Raise Rejected when no square of a photo can be large enough."""
    needed = rules.stored / rules.max_enlargement
    if min(width, height) < needed:
        raise Rejected("photo too small", f"{width} x {height} px, needs {needed:.0f} on its shorter side")


def the_face(found: Sequence[Detection], width: int, height: int, rules: PhotoRules) -> Detection:
    """The one face of a photo. Raises Rejected when there is none, or more, or it is small or cut off."""
    if not found:
        raise Rejected("no face")
    if len(found) > 1:
        raise Rejected("several faces", f"{len(found)} faces")
    (face,) = found
    side = face_side(face.box)
    if side < rules.min_face:
        raise Rejected("face too small", f"{side:.0f} px, needs {rules.min_face}")
    share = side / min(width, height)
    if share < rules.min_share:
        raise Rejected("face too small", f"{share:.0%} of the photo, needs {rules.min_share:.0%}")
    if max(*-face.box[:2], face.box[2] - width, face.box[3] - height) > OVERHANG * side:
        raise Rejected("face cut off", "it reaches beyond the photo's edge")
    return face


def training_square(box: np.ndarray, width: int, height: int, rules: PhotoRules) -> Square:
    """The part of a photo to train on: the face [4] with its surroundings, as large as photo and rules allow.

    Raises Rejected when it would have to be enlarged too much.
    """
    side = min(width, height, round(rules.surroundings * face_side(box)))
    enlargement = rules.stored / side
    if enlargement > rules.max_enlargement:
        raise Rejected(
            "too few pixels",
            f"the square around the face has {side} px, needs {rules.stored / rules.max_enlargement:.0f}",
        )
    (x0, y0), (x1, y1) = box[:2], box[2:]
    # as composed, but with the face inside, and inside the photo
    x = np.clip((x0 + x1) / 2 - side / 2, max(0, x1 - side), max(0, x0))
    y = np.clip((y0 + y1) / 2 - FACE_HEIGHT * side, max(0, y1 - side), max(0, y0))
    return Square(min(round(float(x)), width - side), min(round(float(y)), height - side), side)


def face_side(box: np.ndarray) -> float:
    """The longer side of a box [4]."""
    return float((box[2:] - box[:2]).max())


def head_pose(landmarks: np.ndarray) -> HeadPose:
    """How a head is turned and tilted, from its landmarks [106, 2].

    Roll is the angle of the line through both eyes. Turning a head by yaw moves the tip of its nose, which lies in front
    of the eyes, by depth * sin(yaw) to the side, and shortens the distance of the eyes by cos(yaw); their ratio gives
    the angle. Seen from afar; a nose longer than the mean one reads as a stronger turn.
    """
    left, right = landmarks[LEFT_EYE].mean(0), landmarks[RIGHT_EYE].mean(0)
    along = right - left
    distance = max(float(np.hypot(*along)), 1e-6)
    aside = float((landmarks[NOSE_TIP] - (left + right) / 2) @ along) / distance**2  # in distances of the eyes
    return HeadPose(float(np.degrees(np.arctan(aside / NOSE_DEPTH))), float(np.degrees(np.arctan2(along[1], along[0]))))


def check_pose(pose: HeadPose, rules: PhotoRules) -> None:
    """Raise Rejected for a head that is turned or tilted too far."""
    if abs(pose.yaw) > rules.max_yaw:
        raise Rejected("head turned", f"by about {abs(pose.yaw):.0f} degrees, at most {rules.max_yaw:g}")
    if abs(pose.roll) > rules.max_roll:
        raise Rejected("head tilted", f"by {abs(pose.roll):.0f} degrees, at most {rules.max_roll:g}")


def sharpness(photo: np.ndarray, box: np.ndarray) -> float:
    """How much fine detail a face [4] of a photo uint8 [h, w, 3] shows: the deviation of its Laplacian, in grey levels.

    Faces are scaled to one size first, so that a large face isn't called blurred.
    """
    height, width = photo.shape[:2]
    x0, y0, x1, y1 = np.round(box).clip(0, (width, height, width, height)).astype(int)
    face = Image.fromarray(np.ascontiguousarray(photo[y0:y1, x0:x1])).convert("L")
    grey = np.asarray(face.resize((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BICUBIC), np.float32)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(laplacian.std())


def check_sharpness(value: float, rules: PhotoRules) -> None:
    """Raise Rejected for a face that shows less detail than asked for."""
    if value < rules.min_sharpness:
        raise Rejected("face blurred", f"sharpness {value:.1f}, needs {rules.min_sharpness:g}")
