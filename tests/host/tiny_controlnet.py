"""A node for the tests' servers: a ControlNet of the demo's shape, since none is trained for it."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import torch

SEED, SIZE = 5, 0.05  # of its random weights


class TinyControlNet:
    """What it makes of a picture means nothing, but it depends on the picture."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, model):
        config = {key: value for key, value in model.model.model_config.unet_config.items() if key != "out_channels"}
        network = comfy.cldm.cldm.ControlNet(**config | {"hint_channels": 3, "dtype": torch.float32})
        generator = torch.Generator().manual_seed(SEED)
        for tensor in network.parameters():
            tensor.data = torch.randn(tensor.shape, generator=generator) * SIZE
        device = comfy.model_management.get_torch_device()
        return (comfy.controlnet.ControlNet(network, load_device=device),)


NODE_CLASS_MAPPINGS = {"TinyControlNet": TinyControlNet}
