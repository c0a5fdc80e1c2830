"""The demo's untrained models, where training starts: `python -m hyperlora_core.demo.models` writes models/demo."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from .. import packages
from ..catalog import shipped_models
from . import hyperlora, sdxl

DEMO_FOLDER = shipped_models() / "demo"
SDXL_FOLDER, CLIP_FOLDER, HYPERLORA_FOLDER = "sdxl", "clip_vision", "hyper_lora"

CLIP_VISION = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": hyperlora.DEMO.clip_width,
    "intermediate_size": 4 * hyperlora.DEMO.clip_width,
    "projection_dim": hyperlora.DEMO.clip_width,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
}


def make_demo(
    folder: str | Path = DEMO_FOLDER, seed: int = 0, progress: Callable[[int, int, str], None] | None = None
) -> None:
    """Write the untrained text-to-image model, CLIP tower and HyperLoRA into sdxl/, clip_vision/ and hyper_lora/.

    The same seed gives the same files. `progress(steps done, steps in all, what comes next)` may raise to stop.
    """
    folder = Path(folder)
    steps = [
        ("text-to-image model", lambda: _make_sdxl(folder / SDXL_FOLDER, seed)),
        ("CLIP vision tower", lambda: _make_clip(folder / CLIP_FOLDER, seed)),
        ("HyperLoRA", lambda: _make_hyperlora(folder / HYPERLORA_FOLDER, seed)),
    ]
    for done, (name, make) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps), name)
        make()
    if progress is not None:
        progress(len(steps), len(steps), "done")


def _make_sdxl(folder: Path, seed: int) -> None:
    sdxl.save_models(folder, sdxl.DEMO, sdxl.random_models(sdxl.DEMO, seed))


def _make_clip(folder: Path, seed: int) -> None:
    transformers = packages.require("transformers", "Making the demo's CLIP tower")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP_VISION))
    sdxl.write_json(folder / "config.json", CLIP_VISION)
    sdxl.write_half(folder / "model.safetensors", sdxl.prefixed(tower.state_dict(), "vision_model"))


def _make_hyperlora(folder: Path, seed: int) -> None:
    modules = hyperlora.unet_modules(sdxl.unet_config(sdxl.DEMO))
    hyperlora.write_modules(folder, modules)
    for part, tensors in hyperlora.random_hyperlora(modules, hyperlora.DEMO, seed).items():
        sdxl.write_half(folder / f"{part}.safetensors", tensors)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hyperlora_core.demo.models", description="Write untrained models.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the models that are there, trained or not")
    options = parser.parse_args(arguments)
    if (options.folder / SDXL_FOLDER).exists() and not options.overwrite:
        parser.error(f"{options.folder} holds models already: choose another folder, or --overwrite")
    make_demo(
        options.folder,
        options.seed,
        progress=lambda done, total, name: sys.stderr.write(f"{done}/{total} {name}\n"),
    )


if __name__ == "__main__":
    main()
