"""The host's CLIP_VISION in the place of our own image tower."""

from collections.abc import Iterable

import numpy as np
import torch

from ..hyperlora_core import HyperLoRAError
from ..hyperlora_core.hyperlora import MOST_AT_ONCE
from ..hyperlora_core.pictures import image_batch
from ..hyperlora_core.vision import clip_crop


class HostClipVision:
    """Answers like hyperlora_core.VisionEncoder."""

    name = "the CLIP vision model connected to clip_vision"

    def __init__(self, clip_vision):
        config = getattr(clip_vision, "config", {})
        if config.get("model_type", "clip_vision_model") != "clip_vision_model":
            raise HyperLoRAError(
                f"The model connected to clip_vision is a {config['model_type']}, not a CLIP image tower: "
                "connect OpenAI's CLIP ViT-L/14, or nothing."
            )
        self.clip_vision = clip_vision

    @property
    def width(self) -> int:
        return self.clip_vision.config["hidden_size"]

    @property
    def tokens(self) -> int:
        return 1 + (self.clip_vision.image_size // self.clip_vision.config["patch_size"]) ** 2

    def encode_pictures(self, pictures: Iterable[np.ndarray]) -> torch.Tensor:
        # cropped by us, so that the host's own resizing finds nothing to do
        crops = image_batch([clip_crop(picture, self.clip_vision.image_size) for picture in pictures])
        encoded = [self.clip_vision.encode_image(some) for some in crops.split(MOST_AT_ONCE)]
        return torch.cat([each["penultimate_hidden_states"] for each in encoded])
