"""Who is drawn: an identity is a point in a box of continuous traits, and a seed names it for ever."""

from dataclasses import astuple, dataclass, fields

import numpy as np

from ...errors import HyperLoRAError

TRAIN = range(1_000_000)
HELD_OUT = range(1_000_000, 2_000_000)


@dataclass(frozen=True)
class Identity:
    """A person of the drawn world: traits in 0..1, each from one extreme of the look to the other."""

    skin_tone: float  # dark to light
    skin_warmth: float
    face_width: float
    jaw_width: float
    chin_length: float
    cheek_blush: float
    eye_colour: float
    eye_size: float
    eye_openness: float
    eye_spacing: float
    eye_tilt: float
    eye_height: float
    brow_thickness: float
    brow_height: float
    brow_tilt: float
    brow_arch: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    upper_lip: float
    lower_lip: float
    lip_colour: float
    ear_size: float
    hair_colour: float
    hair_style: float  # the drawn style is one of hair.STYLES
    hair_length: float
    hair_volume: float
    hairline: float
    facial_hair: float  # none below 0.62, then moustache, chin beard, full beard
    freckles: float  # none below 0.6
    mole: float  # none below 0.6, then its place on the face

    @classmethod
    def from_seed(cls, seed: int) -> "Identity":
        """The identity that `seed` names: the same one on every machine and in every version."""
        return cls(*np.random.default_rng(seed).random(len(fields(cls))).tolist())

    @classmethod
    def from_vector(cls, vector: np.ndarray) -> "Identity":
        """The inverse of `vector`: values are clipped to 0..1."""
        return cls(*np.clip(vector, 0, 1).tolist())

    def vector(self) -> np.ndarray:
        """The traits as float32 [t], in 0..1, in the order of the fields."""
        return np.asarray(astuple(self), np.float32)


def training_identity(seed: int) -> Identity:
    """`Identity.from_seed`, for training code: raises HyperLoRAError for anything but a training seed."""
    if seed not in TRAIN:
        raise HyperLoRAError(
            f"Seed {seed} isn't a training identity. Train on seeds {TRAIN.start} to {TRAIN.stop - 1}: "
            f"those from {HELD_OUT.start} on are held out for measuring."
        )
    return Identity.from_seed(seed)
