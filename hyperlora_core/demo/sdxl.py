"""SDXL's parts in any size, in the diffusers folder layout: the real one's configs, and a narrow model for 128 x 128.

Podell et al. 2023 (arXiv 2307.01952) is the architecture; TAESD is the demo's autoencoder, because both diffusers and
ComfyUI know its form (its 64 channels are fixed in ComfyUI).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import packages
from ..files import write_tensors, written_aside
from .tokenizer import POSITIONS, VOCABULARY_SIZE

TIME_ID_WIDTH = 256
TIME_IDS = 6
# file of weights by sub-folder, as diffusers and transformers name them
WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


@dataclass(frozen=True)
class TextSize:
    width: int
    layers: int
    heads: int
    activation: str


@dataclass(frozen=True)
class SDXLSize:
    """Everything in which one SDXL differs from another. `depths`: transformer layers in each attention of a level."""

    channels: tuple[int, int, int]
    depths: tuple[int, int, int]
    res_blocks: int
    head_width: int
    text: tuple[TextSize, TextSize]
    latent_size: int
    tiny_vae: bool

    @property
    def context_width(self) -> int:
        return self.text[0].width + self.text[1].width


SDXL_BASE = SDXLSize(
    channels=(320, 640, 1280),
    depths=(1, 2, 10),
    res_blocks=2,
    head_width=64,
    text=(TextSize(768, 12, 12, "quick_gelu"), TextSize(1280, 32, 20, "gelu")),
    latent_size=128,
    tiny_vae=False,
)
DEMO = SDXLSize(
    channels=(64, 128, 128),  # ComfyUI wants multiples of the first
    depths=(1, 1, 1),
    res_blocks=2,
    head_width=32,
    text=(TextSize(32, 4, 2, "quick_gelu"), TextSize(64, 4, 2, "gelu")),
    latent_size=16,
    tiny_vae=True,
)


def unet_config(size: SDXLSize) -> dict:
    """Config of a diffusers UNet2DConditionModel: no attention at the finest level, text and time_ids as conditions."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size.latent_size,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": list(size.channels),
        "layers_per_block": size.res_blocks,
        "transformer_layers_per_block": list(size.depths),
        # diffusers' misnomer: for SDXL this is the number of heads
        "attention_head_dim": [width // size.head_width for width in size.channels],
        "cross_attention_dim": size.context_width,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_ID_WIDTH,
        "projection_class_embeddings_input_dim": size.text[1].width + TIME_IDS * TIME_ID_WIDTH,
    }


def text_config(size: TextSize, projection: bool) -> dict:
    """Config of a CLIPTextModel, or with `projection` of a CLIPTextModelWithProjection."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": POSITIONS,
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "projection_dim": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "hidden_act": size.activation,
        "bos_token_id": VOCABULARY_SIZE - 2,
        "eos_token_id": VOCABULARY_SIZE - 1,
        "pad_token_id": 0 if projection else VOCABULARY_SIZE - 1,
    }


def vae_config(size: SDXLSize) -> dict:
    """Config of an AutoencoderTiny (the demo's) or an AutoencoderKL (SDXL's), both 8x with 4 latent channels."""
    if size.tiny_vae:
        # latents of an AutoencoderTiny are already at the diffusion model's scale
        return {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0, "force_upcast": False}
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 8 * size.latent_size,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    }


SCHEDULER_CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def configs(size: SDXLSize) -> dict[str, dict]:
    """Return the configs by their paths in a diffusers folder; the tokenizers have none, see tokenizer.py."""
    vae = vae_config(size)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", SCHEDULER_CONFIG["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae["_class_name"]],
    }
    return {
        "model_index.json": index,
        "scheduler/scheduler_config.json": SCHEDULER_CONFIG,
        "unet/config.json": unet_config(size),
        "vae/config.json": vae,
        "text_encoder/config.json": text_config(size.text[0], projection=False),
        "text_encoder_2/config.json": text_config(size.text[1], projection=True),
    }


def random_models(size: SDXLSize, seed: int = 0) -> dict[str, torch.nn.Module]:
    """Return the four untrained models by sub-folder, fp32: initialised by their libraries, the VAE's ends scaled."""
    diffusers = packages.require("diffusers", "Making the demo's text-to-image model")
    transformers = packages.require("transformers", "Making the demo's text encoders")
    vae = vae_config(size)
    texts = [transformers.CLIPTextConfig(**text_config(text, projection=i == 1)) for i, text in enumerate(size.text)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = {
            "unet": diffusers.UNet2DConditionModel.from_config(unet_config(size)),
            "vae": getattr(diffusers, vae["_class_name"]).from_config(vae),
            "text_encoder": transformers.CLIPTextModel(texts[0]),
            "text_encoder_2": transformers.CLIPTextModelWithProjection(texts[1]),
        }
        if size.tiny_vae:
            scale_ends(models["vae"])
    return {name: model.eval() for name, model in models.items()}


@torch.no_grad()
def scale_ends(vae: torch.nn.Module) -> None:
    """Give an untrained AutoencoderTiny, black at first, latents of deviation 1 and pictures around middle grey."""
    pictures, latents = torch.rand(1, 3, 64, 64) * 2 - 1, 3 * torch.randn(1, 4, 8, 8)
    halves = ((vae.encoder, pictures, 1.0, 1.0), (vae.decoder, latents, 0.4, 0.5))
    for half, sample, deviation, slope in halves:
        end = half.layers[-1]
        end.weight *= deviation / half(sample).std(dim=(0, 2, 3)).mean()
        # the decoder's own output is 0..1 and leaves the model as -1..1, so its bias moves it by twice as much
        end.bias -= slope * half(sample).mean(dim=(0, 2, 3))


def save_models(folder: str | Path, size: SDXLSize, models: dict[str, torch.nn.Module]) -> None:
    """Write `models` (see random_models) as fp16 and all configs as a diffusers folder without tokenizers."""
    folder = Path(folder)
    for name, config in configs(size).items():
        write_json(folder / name, config)
    for name, model in models.items():
        tensors = model.state_dict()
        write_half(folder / name / WEIGHT_FILES[name], prefixed(tensors, "text_model") if "text" in name else tensors)


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Name a CLIP tower's tensors as its published files do: transformers 5 dropped the prefix, files keep it."""
    return {
        name if name.startswith((f"{prefix}.", "text_projection.")) else f"{prefix}.{name}": tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }


def write_json(path: Path, value: dict) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_half(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as fp16 safetensors."""
    with written_aside(path) as aside:
        write_tensors(aside, {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}, {})
