"""Drawn portraits of people who don't exist: the data on which everything in `models/demo` is trained and measured.

rng = np.random.default_rng(0)
portrait = render(Identity.from_seed(7), Scene.random(rng))
"""

from .draw import Portrait, render
from .identity import HELD_OUT, TRAIN, Identity, training_identity
from .scene import BACKGROUND_KINDS, COLOURS, Scene

__all__ = [
    "BACKGROUND_KINDS",
    "COLOURS",
    "HELD_OUT",
    "TRAIN",
    "Identity",
    "Portrait",
    "Scene",
    "render",
    "training_identity",
]
