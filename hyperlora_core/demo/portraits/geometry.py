"""The face's curves in its own units, and the pose that carries them into the picture.

Face units: the crown at y = -1, the chin near y = +1, x to the picture's right, z towards the viewer.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .identity import Identity
from .scene import Scene

EAR_LEVEL = -0.1
# the 106 landmarks in the order of InsightFace's 2d106 network: indices by the place that they mark
CONTOUR_LEFT = [1, *range(9, 17), *range(2, 9)]  # ear to chin, on the picture's left
CHIN = 0
CONTOUR_RIGHT = [17, *range(25, 33), *range(18, 25)]
EYE_LEFT = {"outer": 35, "inner": 39, "upper": (41, 40, 42), "lower": (36, 33, 37), "centre": (34, 38)}
EYE_RIGHT = {"outer": 93, "inner": 89, "upper": (96, 94, 95), "lower": (91, 87, 90), "centre": (88, 92)}
BROW_LEFT = {"top": (43, 48, 49, 51, 50), "bottom": (44, 45, 47, 46)}  # outer to inner
BROW_RIGHT = {"top": (101, 105, 104, 103, 102), "bottom": (100, 99, 98, 97)}
MOUTH_OUTER = [52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55]  # left corner, over the top, and back
MOUTH_INNER = [65, 66, 62, 70, 69, 57, 60, 54]
NOSE_BRIDGE = [72, 73, 74, 86]
NOSE_BASE = [78, 79, 80, 85, 84]
NOSE_SIDES = [75, 76, 77, 81, 82, 83]


def lerp(low: float, high: float, t: float) -> float:
    """`low` at t = 0, `high` at t = 1."""
    return low + (high - low) * t


class Pose:
    """Carries face units [n, 2] into pixels [n, 2]; `depth` says how far in front of the head's axis points lie."""

    def __init__(self, scene: Scene, size: float):
        self.unit = scene.scale * size
        self.turn, self.nod = np.sin(scene.turn), np.sin(scene.nod)
        self.centre = np.asarray(scene.centre) * size
        cos, sin = np.cos(scene.roll), np.sin(scene.roll)
        self.rotation = np.array([[cos, sin], [-sin, cos]]) * self.unit
        self.narrowing = np.cos(scene.turn)

    def flat(self, points: np.ndarray) -> np.ndarray:
        """Silhouettes (head, hair, hat): they look alike from a little aside, so they only roll with the head."""
        return np.asarray(points) @ self.rotation + self.centre

    def front(self, points: np.ndarray, lift: float = 0.0) -> np.ndarray:
        """Features on the face's surface, `lift` above it: they shift with turn and nod, more the nearer they are."""
        x, y = points.T
        z = 0.62 * np.sqrt(np.maximum(1 - x * x * 1.1 - y * y * 0.64, 0.02)) + lift
        moved = np.empty_like(points)
        moved[:, 0] = x * self.narrowing + z * self.turn
        moved[:, 1] = y + z * self.nod
        return moved @ self.rotation + self.centre


@dataclass(frozen=True)
class Face:
    """The curves of one person under one expression, in face units."""

    who: Identity
    smiling: bool

    @cached_property
    def half_width(self) -> float:
        return lerp(0.62, 0.84, self.who.face_width)

    @cached_property
    def chin(self) -> float:
        return lerp(0.9, 1.12, self.who.chin_length)

    def jaw(self, n: int) -> np.ndarray:
        """The right half of the lower outline [n, 2], from the ear down to the chin."""
        angle = np.linspace(0, np.pi / 2, n)
        squareness = lerp(1.7, 3.4, self.who.jaw_width)
        flat_chin = lerp(0.78, 0.5, self.who.jaw_width)
        x = self.half_width * np.cos(angle).clip(0) ** (2 * flat_chin)
        y = EAR_LEVEL + (self.chin - EAR_LEVEL) * np.sin(angle) ** (2 / squareness)
        return np.stack([x, y], 1)

    def skull(self, n: int, grow: float = 0.0) -> np.ndarray:
        """The upper outline [n, 2] from the left ear over the crown to the right ear, `grow` outside the head."""
        angle = np.linspace(np.pi, 0, n)
        x = (self.half_width + grow) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.9
        return np.stack([x, EAR_LEVEL - (1 + EAR_LEVEL + grow) * np.sin(angle)], 1)

    @cached_property
    def outline(self) -> np.ndarray:
        right = self.jaw(20)
        return np.concatenate([self.skull(25), right[1:], (right * (-1, 1))[::-1][1:]])

    @cached_property
    def eye_y(self) -> float:
        return lerp(-0.13, 0.02, self.who.eye_height)

    @cached_property
    def eye_x(self) -> float:
        return self.half_width * lerp(0.42, 0.54, self.who.eye_spacing)

    @cached_property
    def eye_half(self) -> float:
        return lerp(0.135, 0.2, self.who.eye_size)

    def eye(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Upper and lower lid [9, 2] each, from the outer to the inner corner; `side` -1 is the picture's left."""
        t = np.linspace(-1, 1, 9)  # outer to inner
        open_ = self.eye_half * lerp(0.45, 0.82, self.who.eye_openness) * (0.88 if self.smiling else 1)
        tilt = np.tan(lerp(-0.2, 0.24, self.who.eye_tilt))
        along, lift = t * self.eye_half, t * self.eye_half * tilt
        upper = lift - open_ * (1 - np.abs(t + 0.1) ** 2.2).clip(0) * 1.05
        lower = lift + open_ * 0.72 * (1 - t**2)
        upper[[0, -1]] = lift[[0, -1]]
        x = side * (self.eye_x - along)
        return np.stack([x, self.eye_y + upper], 1), np.stack([x, self.eye_y + lower], 1)

    def brow(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Upper and lower edge [7, 2] each, from the outer to the inner end."""
        t = np.linspace(-1, 1, 7)
        who = self.who
        y = self.eye_y - lerp(0.19, 0.31, who.brow_height) - self.eye_half * 0.25
        middle = y + t * lerp(-0.075, 0.05, who.brow_tilt) - lerp(0.0, 0.09, who.brow_arch) * (1 - (t + 0.25) ** 2)
        half = lerp(0.014, 0.058, who.brow_thickness) * (0.45 + 0.55 * np.sqrt((t + 1.02) / 2))
        x = side * (self.eye_x * 0.98 - t * self.eye_half * 1.25)
        return np.stack([x, middle - half], 1), np.stack([x, middle + half], 1)

    @cached_property
    def nose_y(self) -> float:
        return self.eye_y + lerp(0.34, 0.56, self.who.nose_length)

    @cached_property
    def nose_half(self) -> float:
        return lerp(0.1, 0.21, self.who.nose_width)

    @cached_property
    def mouth_y(self) -> float:
        return lerp(self.nose_y + 0.2, self.chin - 0.3, lerp(0.25, 0.75, self.who.mouth_height))

    @cached_property
    def mouth(self) -> dict[str, np.ndarray]:
        """Lips as curves [9, 2] from left to right: `top`, `inner_top`, `inner_bottom`, `bottom`."""
        t = np.linspace(-1, 1, 9)
        who = self.who
        half = lerp(0.2, 0.34, who.mouth_width) * (1.12 if self.smiling else 1)
        curve = self.mouth_y + (-0.085 if self.smiling else -0.012) * (t**2 - 0.35)
        bow = 1 - np.abs(t) ** 1.6 - 0.3 * np.exp(-((t / 0.22) ** 2))
        gap = 0.085 if self.smiling else 0.0
        inner_bottom = curve + gap * (1 - t**2)
        upper = lerp(0.03, 0.1, who.upper_lip) * bow
        lower = lerp(0.04, 0.13, who.lower_lip) * (1 - np.abs(t) ** 2.2)
        ys = {"top": curve - upper, "inner_top": curve, "inner_bottom": inner_bottom, "bottom": inner_bottom + lower}
        return {name: np.stack([t * half, y], 1) for name, y in ys.items()}

    def landmarks(self, pose: Pose) -> np.ndarray:
        """The 106 points in pixels, float32 [106, 2], in the order of InsightFace's 2d106 network."""
        points = np.zeros((106, 2), np.float32)
        jaw = self.jaw(17)
        points[CONTOUR_RIGHT] = pose.flat(jaw[:-1])
        points[CONTOUR_LEFT] = pose.flat(jaw[:-1] * (-1, 1))
        points[CHIN] = pose.flat(jaw[-1:])[0]
        for side, eye, brow in ((-1, EYE_LEFT, BROW_LEFT), (1, EYE_RIGHT, BROW_RIGHT)):
            upper, lower = (pose.front(lid) for lid in self.eye(side))
            points[[eye["outer"], eye["inner"]]] = upper[[0, -1]]
            points[list(eye["upper"])] = upper[[2, 4, 6]]
            points[list(eye["lower"])] = lower[[2, 4, 6]]
            points[list(eye["centre"])] = self.eye_centre(side, pose)
            top, bottom = (pose.front(edge) for edge in self.brow(side))
            points[list(brow["top"])] = _spread(top, 5)
            points[list(brow["bottom"])] = _spread(bottom, 4)
        lips = {name: pose.front(curve) for name, curve in self.mouth.items()}
        points[MOUTH_OUTER] = np.concatenate([_spread(lips["top"], 7), _spread(lips["bottom"], 7)[-2:0:-1]])
        points[MOUTH_INNER] = np.concatenate([_spread(lips["inner_top"], 5), _spread(lips["inner_bottom"], 5)[-2:0:-1]])
        bridge = np.stack([np.zeros(4), np.linspace(self.eye_y, self.nose_y - 0.07, 4)], 1)
        points[NOSE_BRIDGE] = [
            pose.front(p[None], lift)[0] for p, lift in zip(bridge, (0.04, 0.08, 0.13, 0.2), strict=True)
        ]
        half = self.nose_half
        base = np.stack(
            [np.array([-0.8, -0.4, 0, 0.4, 0.8]) * half, self.nose_y + np.array([0, 0.03, 0.045, 0.03, 0])], 1
        )
        points[NOSE_BASE] = pose.front(base, 0.08)
        sides = np.array([[-0.35 * half, self.eye_y], [-0.6 * half, self.nose_y - 0.16], [-half, self.nose_y - 0.05]])
        points[NOSE_SIDES] = pose.front(np.concatenate([sides, sides * (-1, 1)]), 0.06)
        return points

    def eye_centre(self, side: int, pose: Pose) -> np.ndarray:
        """The iris' middle in pixels [2]."""
        upper, lower = self.eye(side)
        return pose.front(((upper[4] + lower[4]) / 2)[None])[0]


def _spread(curve: np.ndarray, n: int) -> np.ndarray:
    """`n` points [n, 2] at equal steps along the samples of `curve`, both ends included."""
    at = np.linspace(0, len(curve) - 1, n)
    return np.stack([np.interp(at, np.arange(len(curve)), curve[:, axis]) for axis in (0, 1)], 1)


def keypoints(landmarks: np.ndarray) -> np.ndarray:
    """InsightFace's five points [5, 2] from the 106: eyes, nose tip, mouth corners, the picture's left first."""
    return landmarks[[EYE_LEFT["centre"][0], EYE_RIGHT["centre"][0], NOSE_BRIDGE[-1], MOUTH_OUTER[0], MOUTH_OUTER[6]]]
