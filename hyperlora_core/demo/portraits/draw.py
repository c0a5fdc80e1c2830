"""From a person and a scene to a picture with its caption and landmarks."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from . import wear
from .geometry import EAR_LEVEL, Face, Pose, keypoints, lerp
from .hair import Hair
from .identity import Identity
from .paint import Colour, Painter, ellipse, mix, palette, shade, smooth
from .scene import Scene

SUPERSAMPLE = 3
SKINS = [(84, 52, 40), (124, 78, 54), (164, 108, 76), (204, 150, 112), (234, 190, 154), (250, 220, 194)]
EYES = [(60, 36, 26), (112, 70, 36), (132, 124, 60), (64, 128, 76), (60, 120, 190), (128, 152, 176)]
LIPS = [(172, 92, 84), (196, 76, 84), (160, 60, 96), (206, 112, 104)]
INK = (44, 30, 30)


class Portrait(NamedTuple):
    """A picture with all that is known about it; coordinates in its pixels, the picture's left first."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    caption: str
    landmarks: np.ndarray  # float32 [106, 2], InsightFace's 2d106 order
    box: np.ndarray  # float32 [4]: left, top, right, bottom of the face
    keypoints: np.ndarray  # float32 [5, 2]: eyes, nose tip, mouth corners


def render(identity: Identity, scene: Scene, size: int = 128) -> Portrait:
    """Draw `identity` under `scene` as a `size` x `size` picture; the same arguments give the same pixels."""
    rng = np.random.default_rng(scene.variation)
    face, painter = Face(identity, scene.smiling), Painter(size * SUPERSAMPLE)
    pose = Pose(scene, painter.size)
    skin = _skin(identity)
    shirt = wear.exact(scene.shirt, rng)
    hair = Hair(face, bool(scene.hat))

    wear.background(painter, scene, rng)
    wear.clothes(painter, face, pose, shirt)
    hair.behind(painter, pose)
    wear.neck(painter, face, pose, shade(skin, 0.86), shirt)
    _ears(painter, face, pose, skin)
    _head(painter, face, pose, skin, scene)
    if scene.old:
        _age(painter, face, pose, shade(skin, 0.72))
    _marks(painter, face, pose, skin)
    hair.facial(painter, pose, skin)
    _nose(painter, face, pose, skin)
    _mouth(painter, face, pose, skin)
    for side in (-1, 1):
        _eye(painter, face, pose, side, skin)
        _brow(painter, face, pose, side, hair.colour)
    hair.front(painter, pose)
    if scene.glasses:
        wear.glasses(painter, face, pose, rng)
    if scene.hat:
        wear.hat(painter, face, pose, wear.exact(scene.hat, rng))

    landmarks = face.landmarks(pose) / SUPERSAMPLE
    forehead = pose.flat(np.array([[0.0, -0.72]])) / SUPERSAMPLE
    around = np.concatenate([landmarks, forehead])
    box = np.concatenate([around.min(0), around.max(0)]).astype(np.float32)
    return Portrait(_lit(painter.reduced(SUPERSAMPLE), scene), scene.caption(), landmarks, box, keypoints(landmarks))


def _skin(who: Identity) -> Colour:
    tone = np.array(palette(SKINS, who.skin_tone)) + (who.skin_warmth - 0.5) * np.array([14, 0, -34])
    return tuple(int(v) for v in tone.clip(0, 255))


def _ears(painter: Painter, face: Face, pose: Pose, skin: Colour) -> None:
    tall = lerp(0.13, 0.24, face.who.ear_size)
    for side in (-1, 1):
        centre = (side * (face.half_width + tall * 0.12) - pose.turn * 0.18, EAR_LEVEL + 0.12)
        painter.fill(pose.flat(ellipse(centre, tall * 0.55, tall)), shade(skin, 0.94))
        painter.fill(pose.flat(ellipse(centre, tall * 0.3, tall * 0.62)), shade(skin, 0.8))


def _head(painter: Painter, face: Face, pose: Pose, skin: Colour, scene: Scene) -> None:
    outline = pose.flat(face.outline)
    painter.fill(outline, skin)
    # a ball's shading, in face coordinates
    low, high = outline.min(0), outline.max(0)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, 32).T), -1)
    x, y = np.moveaxis((grid - pose.centre) @ np.linalg.inv(pose.rotation) / (face.half_width * 1.08, 1.1), -1, 0)
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    aside = {"left": -0.75, "right": 0.75}.get(scene.light, -0.2)
    lit = (x * aside - y * 0.35 + z * 0.8) / np.hypot(np.hypot(aside, 0.35), 0.8)
    blush = lerp(0.0, 0.42, face.who.cheek_blush)
    spots = [pose.front(np.array([[side * 0.42 * face.half_width / 0.7, 0.3]]))[0] for side in (-1, 1)]
    cover = sum(np.exp(-((grid - spot) ** 2).sum(-1) / (0.2 * pose.unit) ** 2) for spot in spots)
    veils = [((0.62 - lit) * 0.75, shade(skin, 0.55)), ((lit - 0.86) * 1.6, mix(skin, (255, 250, 240), 0.6))]
    painter.veils(outline, [*veils, (cover * blush, mix(skin, (214, 60, 60), 0.6))])


def _marks(painter: Painter, face: Face, pose: Pose, skin: Colour) -> None:
    who = face.who
    if who.freckles > 0.6:
        colour = mix(skin, (120, 60, 30), lerp(0.3, 0.6, (who.freckles - 0.6) / 0.4))
        spots = [(0.2, 0.16), (0.3, 0.23), (0.4, 0.16), (0.34, 0.08), (0.27, 0.32), (0.46, 0.26), (0.12, 0.22)]
        for x, y in spots:
            for side in (-1, 1):
                at = pose.front(np.array([[side * x + 0.02 * y, y + 0.02 * side]]))[0]
                painter.fill(ellipse(at, 0.023 * pose.unit, 0.023 * pose.unit, 8), colour)
    if who.mole > 0.6:
        t = (who.mole - 0.6) / 0.4
        angle = lerp(-0.35, 1.0, 2 * t) if t < 0.5 else lerp(np.pi - 1.0, np.pi + 0.35, 2 * t - 1)
        place = np.array([[np.cos(angle) * face.half_width * 0.62, face.mouth_y - 0.12 - np.sin(angle) * 0.06]])
        painter.fill(ellipse(pose.front(place)[0], 0.042 * pose.unit, 0.042 * pose.unit, 10), (62, 34, 28))


def _nose(painter: Painter, face: Face, pose: Pose, skin: Colour) -> None:
    half, y = face.nose_half, face.nose_y
    shadow = shade(skin, 0.8)
    root = face.eye_y - 0.02
    body = [
        (0.3 * half, root),
        (0.42 * half, y - 0.2),
        (half, y - 0.06),
        (0.92 * half, y + 0.02),
        (0.35 * half, y + 0.04),
    ]
    right = np.array(body)
    outline = smooth(np.concatenate([right, (right * (-1, 1))[::-1]]), closed=True, steps=4)
    painter.fill(pose.front(outline, 0.07), mix(skin, shadow, 0.5))
    ridge = np.array([(0.0, root), (0.0, y - 0.12)])
    painter.ribbon(pose.front(smooth(ridge), 0.13), 0.5 * half * pose.unit, mix(skin, (255, 246, 232), 0.22), (0.4, 1))
    painter.fill(pose.front(ellipse((0, y - 0.06), 0.55 * half, 0.075), 0.17), mix(skin, (255, 246, 232), 0.3))
    for side in (-1, 1):
        painter.fill(
            pose.front(ellipse((side * half * 0.48, y + 0.01), 0.3 * half, 0.026, 12), 0.09), shade(skin, 0.42)
        )
        wing = np.array([(side * half * 0.95, y - 0.1), (side * half * 1.06, y - 0.03), (side * half * 0.8, y + 0.03)])
        painter.ribbon(pose.front(smooth(wing), 0.06), 0.03 * pose.unit, shade(skin, 0.62), (0, 1, 0))


def _mouth(painter: Painter, face: Face, pose: Pose, skin: Colour) -> None:
    lips = mix(palette(LIPS, face.who.lip_colour), shade(skin, 0.7), 0.3)
    curves = {name: pose.front(smooth(curve, steps=3), 0.02) for name, curve in face.mouth.items()}
    if face.smiling:
        painter.fill(np.concatenate([curves["inner_top"], curves["inner_bottom"][::-1]]), (250, 248, 242))
    painter.fill(np.concatenate([curves["inner_bottom"], curves["bottom"][::-1]]), lips)
    painter.fill(np.concatenate([curves["top"], curves["inner_top"][::-1]]), shade(lips, 0.84))
    line = shade(lips, 0.45)
    for name in ("inner_top", "inner_bottom") if face.smiling else ("inner_top",):
        painter.ribbon(curves[name], 0.035 * pose.unit, line, (1, 0.7, 1))


def _eye(painter: Painter, face: Face, pose: Pose, side: int, skin: Colour) -> None:
    who = face.who
    upper, lower = (smooth(lid, steps=3) for lid in face.eye(side))
    lid = np.concatenate([pose.front(upper), pose.front(lower)[::-1]])
    painter.fill(lid, (248, 246, 242))
    centre = ((upper[len(upper) // 2] + lower[len(lower) // 2]) / 2) + (0, -0.008)
    order = np.argsort(upper[:, 0])
    colour = palette(EYES, who.eye_colour)
    radius = face.eye_half * 0.52
    for r, paint in ((radius, shade(colour, 0.6)), (radius * 0.82, colour), (radius * 0.42, (14, 12, 14))):
        disc = ellipse(centre, r, r, 20)
        low = np.interp(disc[:, 0], upper[order, 0], upper[order, 1])
        disc[:, 1] = np.clip(disc[:, 1], low, np.interp(disc[:, 0], lower[order, 0], lower[order, 1]))
        painter.fill(pose.front(disc), paint)
    painter.fill(pose.front(ellipse(centre + np.array([-0.025, -0.03]), 0.022, 0.022, 8)), (255, 255, 255))
    painter.ribbon(pose.front(upper), 0.05 * pose.unit, INK, (1, 1, 0.6))
    painter.ribbon(pose.front(lower), 0.014 * pose.unit, shade(skin, 0.5))
    crease = upper[2:-2] - (0, 0.05)
    painter.ribbon(pose.front(crease), 0.022 * pose.unit, shade(skin, 0.68), (0, 1, 0))


def _brow(painter: Painter, face: Face, pose: Pose, side: int, hair: Colour) -> None:
    top, bottom = (smooth(edge, steps=3) for edge in face.brow(side))
    painter.fill(np.concatenate([pose.front(top), pose.front(bottom)[::-1]]), mix(shade(hair, 0.72), INK, 0.25))


def _age(painter: Painter, face: Face, pose: Pose, colour: Colour) -> None:
    thin = 0.026 * pose.unit
    for y in (-0.62, -0.52, -0.42):
        lines = np.array([(-0.34, y + 0.02), (-0.12, y - 0.015), (0.12, y + 0.01), (0.34, y + 0.02)])
        painter.ribbon(pose.front(smooth(lines)), thin, colour, (0, 1, 1, 0))
    corner, mouth = face.eye_x + face.eye_half, face.mouth["top"][-1]
    for side in (-1, 1):
        for rise in (-0.07, 0.0, 0.07):
            foot = np.array([(corner + 0.03, face.eye_y + rise * 0.4), (corner + 0.12, face.eye_y + rise * 1.3)])
            painter.ribbon(pose.front(foot * (side, 1)), thin, colour, (1, 0))
        bag = np.array(
            [
                (0.62 * face.eye_x, face.eye_y + 0.17),
                (face.eye_x, face.eye_y + 0.21),
                (1.35 * face.eye_x, face.eye_y + 0.15),
            ]
        )
        painter.ribbon(pose.front(smooth(bag * (side, 1))), thin, colour, (0, 1, 0))
        fold = np.array(
            [
                (face.nose_half + 0.05, face.nose_y - 0.03),
                (mouth[0] + 0.05, face.mouth_y - 0.1),
                (mouth[0] + 0.09, mouth[1] + 0.06),
            ]
        )
        painter.ribbon(pose.front(smooth(fold * (side, 1))), thin * 1.3, colour, (0.8, 1, 0))


def _lit(picture: Image.Image, scene: Scene) -> np.ndarray:
    """The picture under the scene's light, and as a pencil sketch if it is one: uint8 [h, w, 3]."""
    pixels = np.asarray(picture, np.float32)
    n = len(pixels)
    if scene.light == "dim":
        pixels = pixels * np.array([0.56, 0.58, 0.68], np.float32)
    elif scene.light in ("left", "right"):
        across = np.linspace(-1, 1, n, dtype=np.float32)[None, :, None] * (1 if scene.light == "right" else -1)
        pixels = pixels * (0.92 + 0.13 * across)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    if not scene.sketch:
        return pixels
    gray = Image.fromarray(pixels).convert("L")
    tone = np.asarray(gray, np.float32)
    around = np.asarray(gray.filter(ImageFilter.GaussianBlur(n / 32)), np.float32)
    pencil = 255 * np.clip(tone / (around + 1), 0, 1) ** 1.6
    return np.repeat((0.6 * pencil + 0.4 * tone).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
