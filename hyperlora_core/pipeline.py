"""Portraits without ComfyUI: an SDXL pipeline from diffusers, a LoRA on it, a picture."""

import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from . import packages
from .demo.sdxl import SDXL_BASE, configs, write_json
from .demo.tokenizer import sdxl_tokenizers
from .errors import HyperLoRAError
from .lora import check_fits, diffusers_path, pairs, to_diffusers
from .weights_check import check_safetensors

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

PURPOSE = "Rendering a portrait without ComfyUI"
ADAPTER = "hyperlora"
# the second text encoder and the size conditions: what only SDXL checkpoints have, in their original naming
SDXL_MARKS = ("conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight")

Progress = Callable[[int, int], None]


def load_pipeline(
    path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> "StableDiffusionXLPipeline":
    """Load an SDXL checkpoint (.safetensors), a diffusers folder, or the demo (models/demo or models/demo/sdxl).

    Nothing is downloaded: configs and tokenizers that a checkpoint lacks are made here. By default fp16 on a GPU, fp32
    on the CPU. Raises HyperLoRAError for what isn't there, isn't SDXL or can't be read.
    """
    diffusers = packages.require("diffusers", PURPOSE)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = {
        "torch_dtype": dtype or (torch.float32 if device.type == "cpu" else torch.float16),
        "local_files_only": True,
        "add_watermarker": False,
    }
    path = Path(path)
    load = _load_folder if path.is_dir() else _load_file
    try:
        with quiet():
            pipeline = load(diffusers.StableDiffusionXLPipeline, path, options)
    except HyperLoRAError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise HyperLoRAError(f"{path} can't be loaded as an SDXL model ({reason}). Download it again.") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _load_folder(pipeline_class: Any, path: Path, options: dict) -> "StableDiffusionXLPipeline":
    folder = path / "sdxl" if (path / "sdxl" / "model_index.json").is_file() else path
    if not (folder / "model_index.json").is_file():
        raise HyperLoRAError(
            f"{path} holds no model_index.json, so it isn't a diffusers model. "
            "Give an SDXL .safetensors file, a diffusers folder, or the demo's folder."
        )
    for file in folder.glob("*/*.safetensors"):
        check_safetensors(file)
    tokenizers = zip(("tokenizer", "tokenizer_2"), sdxl_tokenizers(), strict=True)
    made = {name: tokenizer for name, tokenizer in tokenizers if not (folder / name).is_dir()}
    return pipeline_class.from_pretrained(folder, use_safetensors=True, **made, **options)


def _load_file(pipeline_class: Any, path: Path, options: dict) -> "StableDiffusionXLPipeline":
    if not path.exists():
        raise HyperLoRAError(f"{path} doesn't exist. Give an SDXL .safetensors file or a diffusers folder.")
    header = check_safetensors(path)
    if path.suffix != ".safetensors":
        raise HyperLoRAError(f"diffusers goes by a file's ending: rename {path} so that it ends in .safetensors.")
    missing = [name for name in SDXL_MARKS if name not in header.tensors]
    if missing:
        raise HyperLoRAError(
            f"{path} is not a complete SDXL checkpoint: it lacks {missing[0]}. "
            "Choose one that holds UNet, text encoders and VAE."
        )
    tokenizer, tokenizer_2 = sdxl_tokenizers()
    with tempfile.TemporaryDirectory() as folder:
        # diffusers would fetch these from the hub
        for name, config in configs(SDXL_BASE).items():
            write_json(Path(folder) / name, config)
        return pipeline_class.from_single_file(
            str(path), config=folder, tokenizer=tokenizer, tokenizer_2=tokenizer_2, **options
        )


def apply_lora(
    pipeline: "StableDiffusionXLPipeline", lora: Mapping[str, Tensor], weight: float = 1.0, name: str = ADAPTER
) -> int:
    """Put a LoRA dict on the UNet, as W + weight * alpha / r * up @ down; return the number of layers it changes.

    LoRAs of other names stay as they are; one of the same name is replaced. Raises HyperLoRAError, with the pipeline
    unchanged, when a key or shape doesn't fit the UNet.
    """
    packages.require("peft", PURPOSE)
    count = check_fits_unet(lora, pipeline.unet, "this pipeline")
    active = {other: strength for other, strength in _strengths(pipeline).items() if other != name}
    remove_lora(pipeline, name)
    with quiet():
        pipeline.load_lora_weights(to_diffusers(lora, pipeline.unet.config.layers_per_block), adapter_name=name)
    patched = sum(name in layer.lora_A for _, layer in _linears(pipeline.unet) if hasattr(layer, "lora_A"))
    if patched != count:
        remove_lora(pipeline, name)
        raise HyperLoRAError(
            f"diffusers put this LoRA on {patched} of its {count} layers: this version doesn't know some of them. "
            "Run: python -m pip install -U diffusers peft"
        )
    active[name] = weight
    pipeline.set_adapters(list(active), list(active.values()))
    return patched


def check_fits_unet(lora: Mapping[str, Tensor], unet: torch.nn.Module, model: str) -> int:
    """`lora.check_fits` for a diffusers UNet, called `model` in the sentence; return the number of layers."""
    # a layer that carries a LoRA already is wrapped
    shapes = {path: getattr(layer, "base_layer", layer).weight.shape for path, layer in _linears(unet)}
    paths = {pair.key: diffusers_path(pair.key, unet.config.layers_per_block) for pair in pairs(lora)}
    check_fits(lora, {key: shapes[path] for key, path in paths.items() if path in shapes}, model)
    return len(paths)


def remove_lora(pipeline: "StableDiffusionXLPipeline", name: str | None = None) -> None:
    """Take the LoRA of this name, or all, off the pipeline; none there is no error."""
    if name is None:
        pipeline.unload_lora_weights()
    elif any(name in names for names in pipeline.get_list_adapters().values()):
        pipeline.delete_adapters(name)


def render(
    pipeline: "StableDiffusionXLPipeline",
    prompt: str,
    negative: str = "",
    *,
    steps: int = 20,
    cfg: float = 5.0,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
    clip_skip: int = 2,
    guide: Collection[str] = (),
    progress: Progress | None = None,
) -> Image.Image:
    """Render one picture; the same seed gives the same noise on every device.

    `guide`: names of LoRAs that only the prompt has, not the negative prompt, so that guidance
    (https://arxiv.org/abs/2207.12598) leads to the person, too: more likeness at the same weight. At cfg 1 it changes nothing.

    `width`, `height`: pixels, multiples of 8, by default the size the model was made for. `clip_skip` counts as ComfyUI
    does: 2 is the last layer but one, SDXL's own. `progress(steps done, steps)` may raise to stop.
    """
    native = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    width, height = width or native, height or native
    if width % 8 or height % 8 or min(width, height, steps) < 1 or clip_skip < 1:
        raise HyperLoRAError(
            f"Can't render {width} x {height} in {steps} steps with CLIP skip {clip_skip}: "
            "sides must be multiples of 8, steps and CLIP skip at least 1."
        )

    def after_step(_pipeline: Any, step: int, _timestep: Any, tensors: dict) -> dict:
        if progress is not None:
            progress(step + 1, steps)
        return tensors

    with _only_for_prompts(pipeline.unet, guide if cfg > 1 else ()):
        return pipeline(
            prompt=prompt,
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=cfg,
            width=width,
            height=height,
            clip_skip=clip_skip - 2,  # diffusers counts from SDXL's own layer
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=after_step,
        ).images[0]


@contextmanager
def _only_for_prompts(unet: torch.nn.Module, names: Collection[str]) -> Iterator[None]:
    """Within it, LoRAs of these names add nothing to the negative prompts: the first half of each batch in diffusers."""

    def second_half(_up: torch.nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        negative, positive = output.chunk(2)
        return torch.cat([torch.zeros_like(negative), positive])

    hooks = []
    try:
        for name in names:
            ups = [layer.lora_B[name] for _, layer in _linears(unet) if name in getattr(layer, "lora_B", ())]
            if not ups:
                raise HyperLoRAError(
                    f'There is no LoRA "{name}" on this pipeline to guide with: apply_lora puts one on.'
                )
            hooks += [up.register_forward_hook(second_half) for up in ups]
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _linears(unet: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The UNet's linear layers by path, plain or wrapped by peft."""
    for path, layer in unet.named_modules():
        wrapped = getattr(layer, "base_layer", layer)
        if isinstance(wrapped, torch.nn.Linear) and not path.endswith(".base_layer") and ".lora_" not in path:
            yield path, layer


def _strengths(pipeline: "StableDiffusionXLPipeline") -> dict[str, float]:
    """Active LoRAs and their weights."""
    active = set(pipeline.get_active_adapters())
    return {
        name: scaling * layer.r[name] / layer.lora_alpha[name]
        for _, layer in _linears(pipeline.unet)
        for name, scaling in getattr(layer, "scaling", {}).items()
        if name in active
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Loading by diffusers and transformers shows no bars and no remarks; what matters to the user is raised."""
    logs = [packages.require(f"{name}.utils.logging", PURPOSE) for name in ("diffusers", "transformers")]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
