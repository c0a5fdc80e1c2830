"""The demo checkpoint in the host: its detector knows SDXL only at full width, so we build the three objects here."""

import json
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch

from ..hyperlora_core import HyperLoRAError
from ..hyperlora_core.weights_check import check_safetensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
# ComfyUI's TAESD takes latents at the VAE's scale, diffusers' at the diffusion model's: SDXL's factor lies between
SDXL_LATENT_SCALE = comfy.supported_models.SDXL.latent_format().scale_factor


def load_demo_checkpoint(folder: str | Path) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Return MODEL, CLIP and VAE from a diffusers folder of a narrow SDXL with a TAESD autoencoder (demo/sdxl.py).

    Raises HyperLoRAError when it isn't there or one of its files is damaged.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise HyperLoRAError(
            f"The demo checkpoint is not in {folder}. Install the pack again, "
            "or write an untrained one, in the pack's folder: python -m hyperlora_core.demo.models"
        )
    folder = str(folder)
    model, clip, vae = load_unet(folder), load_clip(folder), load_vae(folder)
    # how the host makes a fresh copy of each: for hooks under dynamic VRAM, and for several GPUs
    model.cached_patcher_init = (load_unet, (folder,))
    clip.patcher.cached_patcher_init = (load_clip_patcher, (folder,))
    vae.patcher.cached_patcher_init = (load_vae_patcher, (folder,))
    return model, clip, vae


def load_unet(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    config = _config(folder, "unet")
    weights = _weights(folder, "unet", WEIGHTS)
    model_config = comfy.supported_models.SDXL(host_unet_config(config))
    # the class sets SDXL's own head width
    model_config.unet_config["num_head_channels"] = config["block_out_channels"][0] // config["attention_head_dim"][0]

    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    supported = model_config.supported_inference_dtypes
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    model_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = model_config.get_model({}, device=offload)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=offload)
    names = comfy.utils.unet_to_diffusers(model_config.unet_config)  # diffusers name -> the host's
    model.load_model_weights({names[name]: tensor for name, tensor in weights.items()}, assign=patcher.is_dynamic())
    return patcher


def load_clip(folder: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    weights, options = {}, {}
    for name, subfolder in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        options[f"{name}_model_config"] = _config(folder, subfolder)
        tensors = _weights(folder, subfolder, "model.safetensors")
        weights |= {f"{name}.transformer.{key}": tensor for key, tensor in tensors.items()}
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=weights,
        model_options=options,
        disable_dynamic=disable_dynamic,
    )


def load_vae(folder: str) -> comfy.sd.VAE:
    weights = {"vae_scale": torch.tensor(SDXL_LATENT_SCALE), "vae_shift": torch.tensor(0.0)}
    for name, tensor in _weights(folder, "vae", WEIGHTS).items():
        side, _, rest = name.partition(".layers.")
        number, _, rest = rest.partition(".")
        # the host counts the decoder's clamp as its first layer
        weights[f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"] = tensor
    vae = comfy.sd.VAE(sd=weights)
    vae.throw_exception_if_invalid()
    return vae


def load_clip_patcher(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    return load_clip(folder, disable_dynamic).patcher


def load_vae_patcher(folder: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    # like the host's own: its VAE class takes no such choice
    return load_vae(folder).patcher


def host_unet_config(config: dict) -> dict:
    """Translate a diffusers SDXL UNet config into the host's."""
    widths, depths = config["block_out_channels"], config["transformer_layers_per_block"]
    layers = config["layers_per_block"]
    per_level = [
        depth if kind.startswith("CrossAttn") else 0
        for kind, depth in zip(config["down_block_types"], depths, strict=True)
    ]
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in per_level for _ in range(layers)],
        "transformer_depth_middle": depths[-1],
        "transformer_depth_output": [depth for depth in per_level for _ in range(layers + 1)],
        "context_dim": config["cross_attention_dim"],
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "num_classes": "sequential",
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "use_checkpoint": False,
        "legacy": False,
    }


def _config(folder: str, part: str) -> dict:
    return json.loads((Path(folder) / part / "config.json").read_text(encoding="utf-8"))


def _weights(folder: str, part: str, name: str) -> dict[str, torch.Tensor]:
    path = Path(folder) / part / name
    check_safetensors(path)
    return comfy.utils.load_torch_file(str(path), safe_load=True)
