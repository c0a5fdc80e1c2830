"""Surroundings and what a person puts on: background, clothes, hat, glasses."""

import numpy as np

from .geometry import Face, Pose
from .paint import Colour, Painter, ellipse, mix, shade, smooth
from .scene import COLOURS, Scene


def exact(name: str, rng: np.random.Generator) -> Colour:
    """A colour that answers to `name`, drawn a little off its pure form."""
    return tuple(int(np.clip(v + d, 0, 255)) for v, d in zip(COLOURS[name], rng.normal(0, 7, 3), strict=True))


def background(painter: Painter, scene: Scene, rng: np.random.Generator) -> None:
    """Cover the whole canvas."""
    side = painter.size
    ground = (250, 249, 246) if scene.sketch else exact(scene.background, rng)
    painter.draw.rectangle((0, 0, side, side), ground)
    if scene.sketch:
        return
    figure = mix(ground, (255, 255, 255) if sum(ground) < 560 else (120, 120, 120), 0.28)
    pitch = side * rng.uniform(0.13, 0.19)
    offset = rng.uniform(-1, 0, 2) * pitch
    lines = np.arange(0, side + 3 * pitch, pitch)
    if scene.background_kind == "striped":
        lean = rng.choice([-0.35, 0, 0.35]) * side
        for x in np.arange(-0.5 * side, 1.5 * side, pitch) + offset[0]:
            painter.fill(np.array([(x, 0), (x + pitch / 2, 0), (x + pitch / 2 + lean, side), (x + lean, side)]), figure)
    elif scene.background_kind == "dotted":
        for row, y in enumerate(lines + offset[1]):
            for x in lines + offset[0] + row % 2 * pitch / 2:
                painter.fill(ellipse((x, y), pitch * 0.22, pitch * 0.22, 12), figure)
    elif scene.background_kind == "checkered":
        for row, y in enumerate(lines + offset[1]):
            for x in lines[::2] + offset[0] + (row % 2 - 1) * pitch:
                painter.draw.rectangle((x, y, x + pitch, y + pitch), figure)


def clothes(painter: Painter, face: Face, pose: Pose, colour: Colour) -> None:
    """Shoulders in a shirt; the head's roll doesn't move them."""
    x, y = pose.flat(np.array([[0.0, face.chin]]))[0]
    unit, floor = pose.unit, painter.size * 1.02
    top = y + 0.2 * unit
    half = [(0.3, 0.0), (0.62, 0.1), (1.12, 0.27), (1.4, 0.6), (1.55, 1.2)]
    right = np.array([(x + dx * unit, top + dy * unit) for dx, dy in half])
    left = right * (-1, 1) + (2 * x, 0)
    ends = np.array([(right[-1, 0], max(floor, right[-1, 1])), (left[-1, 0], max(floor, right[-1, 1]))])
    painter.fill(np.concatenate([left[::-1], right, ends]), colour)
    for side in (left, right):
        painter.ribbon(side[2:] + ((side[0] - side[2]) * 0.35), 0.05 * unit, shade(colour, 0.78), (0.4, 1))


def neck(painter: Painter, face: Face, pose: Pose, skin: Colour, shirt: Colour) -> None:
    """The neck and the collar around its end."""
    x, y = pose.flat(np.array([[0.0, face.chin]]))[0]
    jaw_x, jaw_y = pose.flat(np.array([[0.0, face.chin - 0.35]]))[0]
    unit = pose.unit
    wide = face.half_width * 0.5 * unit
    base = y + 0.22 * unit
    outline = np.array(
        [(jaw_x - wide, jaw_y), (jaw_x + wide, jaw_y), (x + wide, base), (x + wide * 0.7, base + 0.12 * unit)]
    )
    rest = np.array([(x, base + 0.2 * unit), (x - wide * 0.7, base + 0.12 * unit), (x - wide, base)])
    painter.fill(np.concatenate([outline, rest]), skin)
    collar = np.array(
        [(x - wide * 1.06, base - 0.04 * unit), *rest[::-1], outline[3], (x + wide * 1.06, base - 0.04 * unit)]
    )
    painter.ribbon(smooth(collar), 0.07 * unit, shade(shirt, 0.82))


def hat(painter: Painter, face: Face, pose: Pose, colour: Colour) -> None:
    """A brimmed hat that hides the upper hair."""
    wide = face.half_width + 0.06
    crown = [
        (-wide, -0.56),
        (-wide * 0.93, -1.02),
        (-wide * 0.55, -1.3),
        (0, -1.25),
        (wide * 0.55, -1.3),
        (wide * 0.93, -1.02),
    ]
    painter.fill(pose.flat(smooth(np.array([*crown, (wide, -0.56)]))), colour)
    band = smooth(np.array([(-wide * 1.0, -0.7), (0, -0.6), (wide * 1.0, -0.7)]))
    painter.ribbon(pose.flat(band), 0.16 * pose.unit, shade(colour, 0.55))
    brim = smooth(
        np.array([(-wide * 1.42, -0.6), (-wide * 0.7, -0.56), (0, -0.53), (wide * 0.7, -0.56), (wide * 1.42, -0.6)])
    )
    painter.ribbon(pose.flat(brim), 0.15 * pose.unit, shade(colour, 0.8), (0.2, 0.87, 1, 0.87, 0.2))


def glasses(painter: Painter, face: Face, pose: Pose, rng: np.random.Generator) -> None:
    """A dark frame around both eyes, with its bridge and temples."""
    frame = ((38, 36, 42), (92, 52, 40), (150, 44, 52))[rng.integers(3)]
    roundness = rng.uniform(0.5, 1.0)
    width = 0.045 * pose.unit
    rx = min(face.eye_half * 1.45, face.eye_x - 0.05)
    ry = max(rx * 0.8, face.eye_half * 1.05)
    angle = np.linspace(0, 2 * np.pi, 29)
    rim = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** roundness * rx,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** roundness * ry,
        ],
        1,
    )
    for side in (-1, 1):
        painter.ribbon(pose.front(rim + np.array([side * face.eye_x, face.eye_y + 0.02]), 0.1), width, frame)
        temple = np.array([(side * (face.eye_x + rx), face.eye_y - 0.02), (side * face.half_width, face.eye_y - 0.04)])
        painter.ribbon(np.stack([pose.front(temple[:1], 0.1)[0], pose.flat(temple[1:])[0]]), width * 0.9, frame)
    bridge = smooth(np.array([(-face.eye_x + rx, face.eye_y), (0, face.eye_y - 0.05), (face.eye_x - rx, face.eye_y)]))
    painter.ribbon(pose.front(bridge, 0.1), width, frame)
