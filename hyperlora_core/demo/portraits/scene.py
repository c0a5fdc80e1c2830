"""Everything in a portrait that isn't the person, and the caption that tells of it.

The vocabulary is regular, so that a caption can be read back:

    [black and white sketch|portrait] of [a|an old] person [with glasses] [and|with] [a COLOUR hat][, smiling]
    [, looking left|, looking right][, light from the left|, light from the right][, dim light]
    [, [striped|dotted|checkered] COLOUR background, COLOUR shirt]

A sketch has no colours: its hat is just a hat.
"""

import re
from dataclasses import dataclass, replace

import numpy as np

COLOURS = {
    "red": (200, 52, 48),
    "orange": (236, 136, 46),
    "yellow": (240, 204, 74),
    "green": (74, 152, 84),
    "blue": (64, 112, 196),
    "purple": (134, 84, 176),
    "pink": (238, 144, 172),
    "brown": (128, 88, 62),
    "white": (240, 238, 232),
    "gray": (142, 146, 152),
    "black": (44, 44, 50),
}
BACKGROUND_KINDS = ("plain", "striped", "dotted", "checkered")
# turns beyond this, in radians, are told in the caption
NOTABLE_TURN = 0.2


@dataclass(frozen=True)
class Scene:
    """Pose, light, surroundings and what the person wears; lengths are fractions of the picture's side."""

    centre: tuple[float, float] = (0.5, 0.5)
    scale: float = 0.3  # half the head's height
    roll: float = 0.0  # radians, clockwise
    turn: float = 0.0  # radians, positive: to the picture's right
    nod: float = 0.0  # radians, positive: down
    light: str = "soft"  # soft, left, right, dim
    background: str = "blue"
    background_kind: str = "plain"
    shirt: str = "green"
    hat: str | None = None
    glasses: bool = False
    smiling: bool = False
    old: bool = False
    sketch: bool = False
    variation: int = 0  # seeds what no caption tells: exact shades, the pattern's offset, the glasses' form

    @classmethod
    def random(
        cls, rng: np.random.Generator, sketch: float = 0.06, hat: float = 0.22, glasses: float = 0.25
    ) -> "Scene":
        """A scene drawn from `rng`; `sketch`, `hat` and `glasses` are the chances of these."""
        names = list(COLOURS)
        return cls(
            centre=(rng.uniform(0.46, 0.54), rng.uniform(0.46, 0.52)),
            scale=rng.uniform(0.3, 0.345),
            roll=float(np.clip(rng.normal(0, 0.07), -0.4, 0.4)),
            turn=float(np.clip(rng.normal(0, 0.13), -0.36, 0.36)),
            nod=float(np.clip(rng.normal(0, 0.05), -0.2, 0.2)),
            light=str(rng.choice(["soft", "left", "right", "dim"], p=[0.5, 0.2, 0.2, 0.1])),
            background=str(rng.choice(names)),
            background_kind=str(rng.choice(BACKGROUND_KINDS, p=[0.7, 0.1, 0.1, 0.1])),
            shirt=str(rng.choice(names)),
            hat=str(rng.choice(names)) if rng.random() < hat else None,
            glasses=bool(rng.random() < glasses),
            smiling=bool(rng.random() < 0.4),
            old=bool(rng.random() < 0.15),
            sketch=bool(rng.random() < sketch),
            variation=int(rng.integers(1 << 31)),
        )

    def caption(self) -> str:
        """One sentence in the module's vocabulary."""
        text = "black and white sketch of " if self.sketch else "portrait of "
        text += "an old person" if self.old else "a person"
        wears = ["glasses"] * self.glasses + ([self._hat()] if self.hat else [])
        if wears:
            text += " with " + " and ".join(wears)
        parts = [text]
        if self.smiling:
            parts.append("smiling")
        if abs(self.turn) > NOTABLE_TURN:
            parts.append("looking right" if self.turn > 0 else "looking left")
        if self.light in ("left", "right"):
            parts.append(f"light from the {self.light}")
        elif self.light == "dim":
            parts.append("dim light")
        if not self.sketch:
            kind = "" if self.background_kind == "plain" else f"{self.background_kind} "
            parts += [f"{kind}{self.background} background", f"{self.shirt} shirt"]
        return ", ".join(parts)

    def _hat(self) -> str:
        if self.sketch:
            return "a hat"
        return f"{'an' if self.hat[0] in 'aeiou' else 'a'} {self.hat} hat"

    def told(self, caption: str) -> "Scene":
        """This scene with everything that `caption` mentions set as it says, and what it could mention but doesn't off.

        Words may come in any order; a background or shirt colour that isn't mentioned stays as it is.
        """
        words = caption.lower()
        colour = "|".join(COLOURS)
        hat = re.search(rf"\b(?:({colour}) )?hat\b", words)
        background = re.search(rf"\b(?:({'|'.join(BACKGROUND_KINDS)}) )?({colour}) background\b", words)
        shirt = re.search(rf"\b({colour}) shirt\b", words)
        looking = re.search(r"\blooking (left|right)\b", words)
        light = re.search(r"\blight from the (left|right)\b", words)
        turn = min(abs(self.turn), NOTABLE_TURN) if not looking else max(abs(self.turn), NOTABLE_TURN * 1.5)
        sign = (-1 if looking[1] == "left" else 1) if looking else (-1 if self.turn < 0 else 1)
        return replace(
            self,
            sketch="sketch" in words,
            old=bool(re.search(r"\bold\b", words)),
            glasses="glasses" in words,
            smiling="smiling" in words,
            hat=(hat[1] or self.hat or "brown") if hat else None,
            background=background[2] if background else self.background,
            background_kind=(background[1] or "plain") if background else self.background_kind,
            shirt=shirt[1] if shirt else self.shirt,
            light=light[1] if light else "dim" if "dim light" in words else "soft",
            turn=sign * turn,
        )
