"""HyperLoRA: photos of a person in, a LoRA for SDXL out. The library behind the ComfyUI nodes and the command line.

hyper = load_hyperlora("models/hyper_lora/sdxl_hyper_id_lora_v1_fidelity")
faces = FaceAnalyzer.load("models/insightface/models/antelopev2")
encoder = PhotoEncoder(hyper, faces, VisionEncoder.load("models/clip_vision/clip-vit-large-patch14.safetensors"))
person = encoder.encode(["anna1.jpg", "anna2.jpg"]).identity
lora = hyper.lora(person.coefficients)
"""

import importlib

__version__ = "0.1.0"

# looked up on first use, so that `hyperlora doctor` can name a missing torch instead of failing on it
_HOMES = {
    "EncodeOptions": "encode",
    "Encoded": "encode",
    "FaceAnalyzer": "face.analyzer",
    "HyperLoRA": "hyperlora",
    "HyperLoRAError": "errors",
    "Identity": "identity",
    "MissingPackageError": "errors",
    "NoFaceError": "errors",
    "PhotoEncoder": "encode",
    "VisionEncoder": "vision",
    "load_hyperlora": "checkpoint",
    "load_lora": "lora",
    "merge_branches": "lora",
    "open_encoder": "locate",
    "read_photo": "photo",
    "save_hyperlora": "checkpoint",
    "save_lora": "lora",
    "to_diffusers": "lora",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
