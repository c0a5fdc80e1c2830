"""Drawn photos of people whom no network saw in training."""

import numpy as np
from PIL import Image

from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render


def photo_of(number: int, scene: int = 0, size: int = 256) -> Image.Image:
    """A photo of the held-out person `number`, without hat or glasses, in a scene named by its seed."""
    drawn = Scene.random(np.random.default_rng(scene), sketch=0, hat=0, glasses=0)
    return Image.fromarray(render(Identity.from_seed(HELD_OUT[number]), drawn, size=size).image)


def side_by_side(*photos: Image.Image) -> Image.Image:
    """Several photos as one picture."""
    picture = Image.new("RGB", (sum(photo.width for photo in photos), max(photo.height for photo in photos)))
    x = 0
    for photo in photos:
        picture.paste(photo, (x, 0))
        x += photo.width
    return picture
