"""Captions for the demo's CLIP pair and UNet: a scene's caption, with some of what a person would say about the face.

Captions of the real world say such things, and CLIP's tokens carry faces only because of that. HyperLoRA's own leave the
person out, so that it has something to add.
"""

import re

import numpy as np

from ..demo.portraits import Identity
from ..demo.portraits.hair import STYLES
from .words import PASSING, without

SKINS = ("very dark", "dark", "brown", "tan", "light", "pale")
EYES = ("dark brown", "brown", "hazel", "green", "blue", "gray")
HAIR_COLOURS = ("black", "dark brown", "brown", "auburn", "ginger", "golden", "blond", "white", "gray", "blue", "pink")
HAIR_STYLES = {
    "bald": "bald head",
    "cropped": "cropped {} hair",
    "parted": "short parted {} hair",
    "curly": "curly {} hair",
    "bob": "{} bob with a fringe",
    "long": "long {} hair",
    "bun": "{} hair in a bun",
    "spiky": "spiky {} hair",
    "tails": "{} hair in two tails",
    "wavy": "wavy {} hair",
}
# trait: (words below LOW, words above HIGH); beyond VERY_LOW and VERY_HIGH with a "very" before them
FEATURES = {
    "face_width": ("narrow face", "wide face"),
    "jaw_width": ("pointed jaw", "square jaw"),
    "chin_length": ("short chin", "long chin"),
    "cheek_blush": ("plain cheeks", "red cheeks"),
    "eye_size": ("small eyes", "big eyes"),
    "eye_openness": ("narrow eyes", "round eyes"),
    "eye_spacing": ("close eyes", "wide eyes"),
    "eye_tilt": ("falling eyes", "rising eyes"),
    "eye_height": ("high eyes", "low eyes"),
    "brow_thickness": ("thin brows", "thick brows"),
    "brow_height": ("low brows", "high brows"),
    "brow_tilt": ("falling brows", "rising brows"),
    "brow_arch": ("straight brows", "round brows"),
    "nose_length": ("short nose", "long nose"),
    "nose_width": ("thin nose", "broad nose"),
    "mouth_width": ("small mouth", "wide mouth"),
    "mouth_height": ("high mouth", "low mouth"),
    "upper_lip": ("thin upper lip", "full upper lip"),
    "lower_lip": ("thin lower lip", "full lower lip"),
    "ear_size": ("small ears", "big ears"),
    "hairline": ("high forehead", "low forehead"),
}
LOW, HIGH = 0.35, 0.65
VERY_LOW, VERY_HIGH = 0.15, 0.85
FACE_MARKS_FROM = 0.6  # where freckles and moles begin, see Identity
BEARD_FROM, BEARD_RANGE = 0.62, 0.38
TOLD = 0.7  # chance that a feature is mentioned


def identity_words(identity: Identity, hair: bool = True, face: bool = True, colours: bool = True) -> list[str]:
    """What could be said about a person's `hair` and `face`; without `colours`, as of a sketch."""
    words = []
    if hair:
        style = HAIR_STYLES[list(STYLES)[min(int(identity.hair_style * len(STYLES)), len(STYLES) - 1)]]
        words.append(" ".join(style.format(_named(HAIR_COLOURS, identity.hair_colour) if colours else "").split()))
    if colours:
        words.append(f"{_named(SKINS, identity.skin_tone)} skin")
    if not face:
        return words
    if colours:
        words.append(f"{_named(EYES, identity.eye_colour)} eyes")
    for trait, (low, high) in FEATURES.items():
        value = getattr(identity, trait)
        if value < LOW or value > HIGH:
            very = "very " if value < VERY_LOW or value > VERY_HIGH else ""
            words.append(very + (low if value < LOW else high))
    beard = (identity.facial_hair - BEARD_FROM) / BEARD_RANGE
    if beard > 0:
        words.append("moustache" if beard < 0.33 else "chin beard" if beard < 0.66 else "full beard")
    if identity.freckles > FACE_MARKS_FROM:
        words.append("freckles")
    if identity.mole > FACE_MARKS_FROM:
        words.append("a mole")
    return words


def picture_caption(caption: str, identity: Identity, rng: np.random.Generator) -> str:
    """A whole portrait's caption with some words about the person."""
    return _joined(caption, identity_words(identity, colours="sketch" not in caption), rng)


def face_caption(caption: str, identity: Identity, rng: np.random.Generator) -> str:
    """Of the face cut out: no background, clothes, hat or hair."""
    shown = [part for part in caption.split(", ") if not part.endswith(("background", "shirt"))]
    shown[0] = re.sub(r" (and|with) an? (\w+ )?hat", "", shown[0]).replace("portrait of", "face of")
    return _joined(", ".join(shown), identity_words(identity, hair=False, colours="sketch" not in caption), rng)


def surroundings_caption(caption: str, identity: Identity, rng: np.random.Generator) -> str:
    """Of the picture whose face is blurred: no expression, age or glasses."""
    for word in PASSING:
        caption = without(caption, word)
    shown = [part for part in caption.split(", ") if not part.startswith("looking")]
    words = identity_words(identity, face=False, colours="sketch" not in caption)
    return _joined("blurred " + ", ".join(shown), words, rng)


def _named(names: tuple[str, ...], value: float) -> str:
    """The palette entry nearest to a trait's value."""
    return names[round(value * (len(names) - 1))]


def _joined(caption: str, words: list[str], rng: np.random.Generator) -> str:
    told = [word for word in words if rng.random() < TOLD]
    rng.shuffle(told)
    return ", ".join([caption, *told])
