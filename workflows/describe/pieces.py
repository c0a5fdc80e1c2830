"""Chains of nodes that several workflows share."""

from .parts import Node, file_name, files_table

FIDELITY, EDIT = "sdxl_hyper_id_lora_v1_fidelity", "sdxl_hyper_id_lora_v1_edit"
FACE_PACK = "antelopev2"
PHOTO = "example.png"  # every new ComfyUI has it
MODEL, CLIP, VAE = "checkpoint.MODEL", "clip_skip.CLIP", "checkpoint.VAE"
SIDE = 1024
SAMPLER = {"steps": 20, "cfg": 5.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
NEGATIVE = "blurry, low quality, deformed, watermark, text"
FIRST_PICTURE = ("fidelity", "clip-vision", "antelopev2", "realvisxl")

CONSENT = "The weights are for non-commercial use. Use photos only of people who agree to it.\n"


def checkpoint_node(name: str, title: str = "") -> Node:
    """A loader for an item of the catalog."""
    return Node("CheckpointLoaderSimple", {"ckpt_name": file_name(name)}, title=title, models=[name])


def checkpoint_nodes(name: str = "realvisxl", title: str = "") -> dict[str, Node]:
    """An SDXL checkpoint with CLIP skip 2: MODEL, CLIP and VAE."""
    return {
        "checkpoint": checkpoint_node(name, title),
        "clip_skip": Node("CLIPSetLastLayer", {"stop_at_clip_layer": -2}, {"clip": "checkpoint.CLIP"}),
    }


def loader_nodes(checkpoint: str = FIDELITY, face_pack: str = FACE_PACK) -> dict[str, Node]:
    return {
        "hyperlora": Node("HyperLoRALoadModel", {"checkpoint": checkpoint}),
        "face_analysis": Node("HyperLoRALoadFaceAnalysis", {"face_pack": face_pack}),
    }


def photo_node(title: str = "", picture: str = PHOTO) -> Node:
    return Node("LoadImage", {"image": picture}, extra_height=300, title=title, mine=True)


def identity_node(photo: str = "photo", hyperlora: str = "hyperlora", **links: str) -> Node:
    return Node(
        "HyperLoRAEncodeIdentity",
        links={
            "hyperlora": f"{hyperlora}.hyperlora",
            "face_analysis": "face_analysis.face_analysis",
            "photos": f"{photo}.IMAGE",
            **links,
        },
    )


def lora_node(identity: str = "identity", hyperlora: str = "hyperlora") -> Node:
    return Node(
        "HyperLoRAGenerateLoRA", links={"hyperlora": f"{hyperlora}.hyperlora", "identity": f"{identity}.identity"}
    )


def person_nodes(checkpoint: str = FIDELITY, face_pack: str = FACE_PACK, photo: str = PHOTO) -> dict[str, Node]:
    """Loaders, photo, identity, LoRA."""
    return {
        **loader_nodes(checkpoint, face_pack),
        "photo": photo_node(picture=photo),
        "identity": identity_node(),
        "lora": lora_node(),
    }


def apply_node(model: str = MODEL, lora: str = "lora", **values) -> Node:
    return Node(
        "HyperLoRAApply", values, {"model": model, "id_lora": f"{lora}.id_lora", "base_lora": f"{lora}.base_lora"}
    )


def prompt_nodes(prompt: str, negative: str = NEGATIVE, clip: str = CLIP) -> dict[str, Node]:
    """The prompt behind the trigger words, and the negative prompt."""
    return {
        "prompt": Node("HyperLoRATriggerPrompt", {"prompt": prompt}, extra_height=110, mine=True),
        "positive": encode_node("prompt.prompt", "Positive prompt", clip),
        "negative": negative_node(negative, clip),
    }


def encode_node(text: str, title: str, clip: str = CLIP) -> Node:
    return Node("CLIPTextEncode", links={"clip": clip, "text": text}, title=title, extra_height=30)


def negative_node(text: str = NEGATIVE, clip: str = CLIP) -> Node:
    return Node("CLIPTextEncode", {"text": text}, {"clip": clip}, extra_height=60, title="Negative prompt")


def size_node(width: int = SIDE, height: int = SIDE) -> Node:
    return Node("EmptyLatentImage", {"width": width, "height": height})


def sampler_node(
    model: str = "apply.model",
    latent: str = "size.LATENT",
    positive: str = "positive.CONDITIONING",
    negative: str = "negative.CONDITIONING",
    title: str = "",
    **values,
) -> Node:
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node("KSampler", {"seed": 1, **SAMPLER, **values}, links, title=title)


def decode_node(sampler: str = "sampler", vae: str = VAE) -> Node:
    return Node("VAEDecode", links={"samples": f"{sampler}.LATENT", "vae": vae})


def save_node(images: str = "decode.IMAGE", prefix: str = "hyperlora") -> Node:
    return Node("SaveImage", {"filename_prefix": prefix}, {"images": images}, extra_height=300)


def preview_node(images: str, title: str = "") -> Node:
    return Node("PreviewImage", links={"images": images}, extra_height=240, title=title)


def files_to_get(
    *more: str,
    first: tuple[str, ...] = FIRST_PICTURE,
    instead: str = "in place of RealVisXL any SDXL checkpoint will do",
) -> str:
    """The note's section on files; `first` begins with the items that a plain download fetches."""
    names = " ".join([*first, *more][3:])
    return f"""## Files

{files_table(*first, *more)}

In the folder of this pack, with ComfyUI's own Python:

`python . download` fetches the first three,

`python . download {names}` the rest; {instead},

`python . doctor` says what is missing.

Then press **R**, and choose the files in the loaders.

{CONSENT}"""
