"""Hair: a style is what hangs behind the head, and a cap on it between an outer outline and the hairline."""

from dataclasses import dataclass

import numpy as np

from .geometry import EAR_LEVEL, Face, Pose, lerp
from .paint import Colour, Painter, ellipse, mix, palette, shade, smooth

HAIR_COLOURS = [
    (28, 26, 32), (58, 38, 30), (98, 62, 40), (138, 74, 44), (186, 84, 40), (206, 142, 70), (236, 204, 128),
    (226, 224, 218), (148, 152, 160), (74, 96, 150), (190, 96, 140),
]  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a hair style differs from a plain short cap; lengths in face units."""

    volume: tuple[float, float] = (0.05, 0.14)  # how far the cap stands off the skull, over the volume trait
    part: float = 0.0  # the hairline's slope, as of a side parting
    peak: float = 0.0  # a centre parting's rise
    fringe: bool = False  # straight cut above the brows
    hang: tuple[float, float] | None = None  # how far down it hangs behind the head, over the length trait
    waves: float = 0.0  # depth of curls along the outline
    spikes: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()  # buns, as (x / half width, y)


STYLES = {
    "bald": None,
    "cropped": Style(volume=(0.015, 0.04)),
    "parted": Style(part=0.22),
    "curly": Style(volume=(0.16, 0.34), waves=0.07, hang=(0.15, 0.45)),
    "bob": Style(fringe=True, hang=(0.55, 0.85)),
    "long": Style(peak=0.2, hang=(1.15, 1.6)),
    "bun": Style(volume=(0.03, 0.08), knots=((0.0, -1.17),)),
    "spiky": Style(volume=(0.1, 0.16), spikes=0.17),
    "tails": Style(volume=(0.04, 0.1), peak=0.08, knots=((-1.35, -0.05), (1.35, -0.05))),
    "wavy": Style(part=-0.2, volume=(0.08, 0.18), hang=(0.8, 1.3), waves=0.05),
}


class Hair:
    """One person's hair, possibly under a hat."""

    def __init__(self, face: Face, hat: bool):
        self.face, self.hat, who = face, hat, face.who
        self.style = list(STYLES.values())[min(int(who.hair_style * len(STYLES)), len(STYLES) - 1)]
        self.colour = palette(HAIR_COLOURS, who.hair_colour)
        self.volume = lerp(*self.style.volume, who.hair_volume) if self.style else 0.0
        if hat:
            self.volume = min(self.volume, 0.07)

    def behind(self, painter: Painter, pose: Pose) -> None:
        """What hangs behind the head and the knots; drawn before the neck and the head."""
        style, who = self.style, self.face.who
        if style is None:
            return
        dark = shade(self.colour, 0.8)
        if style.hang:
            low = lerp(*style.hang, who.hair_length)
            wide = self.face.half_width + self.volume + 0.04
            t = np.linspace(0, 1, 9)
            side = np.stack([wide * (1 + 0.1 * np.sin(t * np.pi) - 0.12 * t**3), lerp(0.05, low, t)], 1)
            if style.waves:
                side[:, 0] += style.waves * np.sin(t * 14 * (low + 0.3))
            outline = np.concatenate([self._outer(), side, (side * (-1, 1))[::-1]])
            painter.fill(pose.flat(smooth(outline, closed=True, steps=3)), dark)
        knots = () if self.hat and style.knots and style.knots[0][0] == 0 else style.knots
        for x, y in knots:
            radius = lerp(0.19, 0.32, who.hair_length)
            tail = y + radius * (1.1 if x else -0.5)
            painter.fill(pose.flat(ellipse((x * self.face.half_width, tail), radius, radius * (1.6 if x else 1))), dark)
            painter.fill(
                pose.flat(ellipse((x * self.face.half_width, tail - 0.03), radius * 0.8, radius * (1.4 if x else 0.8))),
                self.colour,
            )

    def _outer(self) -> np.ndarray:
        style = self.style
        n = 41
        outer = self.face.skull(n, self.volume)
        if self.hat:
            return outer
        i = np.arange(n)
        ripple = style.waves * np.abs(np.sin(i * np.pi / 5)) + style.spikes * np.abs((i % 5) / 2.5 - 1) * np.sin(
            i * np.pi / (n - 1)
        )
        return outer * (1 + ripple[:, None])

    def _hairline(self) -> np.ndarray:
        """From the right temple to the left one [n, 2]."""
        face, style = self.face, self.style
        t = np.linspace(1, -1, 25)
        top = lerp(-0.74, -0.5, face.who.hairline)
        if style.fringe:
            top = min(face.brow(1)[0][:, 1].min() - 0.02, -0.36)
        temple = EAR_LEVEL + (0.22 if style.hang else 0.05)
        y = top + (temple - top) * np.abs(t) ** (9 if style.fringe else 4.5)
        y = y + (style.part * (t - 0.35) * (t > -0.6) * (1 - t**6) - style.peak * (1 - np.abs(t)) ** 2)
        return np.stack([t * face.half_width * 0.985, np.maximum(y, -0.97)], 1)

    def front(self, painter: Painter, pose: Pose) -> None:
        """The cap on the skull, drawn after the face."""
        if self.style is None:
            return
        outer = pose.flat(self._outer())
        painter.fill(np.concatenate([outer, pose.front(self._hairline())]), self.colour)
        if self.volume > 0.045:  # a sheen and some strands tell combed hair from a painted skull
            skull = self.face.skull(25)
            crown = pose.flat(skull[5:14] * 0.88 + (0.02, -0.02))
            painter.ribbon(crown, 0.07 * pose.unit, mix(self.colour, (255, 255, 255), 0.22), (0, 1, 0))
            for at in (8, 12, 15, 18):
                strand = np.stack([skull[at] * 1.02, skull[at] * 0.9 + (0.04, 0.03), skull[at] * 0.8 + (0.1, 0.09)])
                above = strand[strand[:, 1] < np.interp(strand[:, 0], *self._hairline()[::-1].T) - 0.02]
                if len(above) == 3:
                    painter.ribbon(pose.flat(smooth(above)), 0.03 * pose.unit, shade(self.colour, 0.78), (0.5, 1, 0))

    def facial(self, painter: Painter, pose: Pose, skin: Colour) -> None:
        """Moustache and beard, drawn before the mouth."""
        amount = (self.face.who.facial_hair - 0.62) / 0.38
        if amount <= 0:
            return
        face, mouth = self.face, self.face.mouth
        colour = mix(self.colour, skin, 0.25)
        left, right = mouth["top"][0], mouth["top"][-1]
        if amount > 0.66:  # full beard, along the jaw
            jaw = face.jaw(12)[2:]
            lip = face.mouth_y - 0.1
            inner = np.array([(face.half_width * 0.62, 0.28), (right[0] + 0.08, lip), (0, lip + 0.01)])
            half = np.concatenate([jaw[::-1] * (0.985, 1.0), inner])
            right_side = np.concatenate([pose.flat(half[:10]), pose.front(half[10:])])
            left_side = np.concatenate([pose.flat(half[:10] * (-1, 1)), pose.front(half[10:] * (-1, 1))])
            painter.fill(np.concatenate([left_side, right_side[::-1]]), colour)
        elif amount > 0.33:  # chin
            bottom = mouth["bottom"][4, 1] + 0.03
            goatee = [
                (-0.17, bottom + 0.02),
                (0, bottom - 0.01),
                (0.17, bottom + 0.02),
                (0.13, face.chin - 0.02),
                (0, face.chin + 0.05),
            ]
            painter.fill(pose.front(smooth(np.array([*goatee, (-0.13, face.chin - 0.02)]), closed=True)), colour)
        if amount < 0.33 or amount > 0.5:
            y = (face.nose_y + mouth["top"][4, 1]) / 2 + 0.03
            bar = np.array(
                [
                    (left[0] * 0.95, left[1] - 0.0),
                    (left[0] * 0.5, y),
                    (0, y - 0.01),
                    (right[0] * 0.5, y),
                    (right[0] * 0.95, right[1]),
                ]
            )
            painter.ribbon(pose.front(smooth(bar)), 0.1 * pose.unit, colour, (0, 1, 0.85, 1, 0))
