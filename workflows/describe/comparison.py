"""The paper's comparison: other methods beside HyperLoRA, with the same seed, prompt, sampler and base."""

from collections.abc import Callable

from .control import INSTANTID_PACK, INSTANTID_SIDE, instantid_nodes
from .parts import FIXED, Group, Node, Workflow, file_name
from .pieces import (
    EDIT,
    FIDELITY,
    FIRST_PICTURE,
    MODEL,
    apply_node,
    checkpoint_nodes,
    decode_node,
    encode_node,
    files_to_get,
    identity_node,
    loader_nodes,
    lora_node,
    negative_node,
    photo_node,
    sampler_node,
    save_node,
    size_node,
)

PROMPT = "portrait photo of a person wearing a straw hat, in a vineyard, late afternoon"
PLAIN, NEGATIVE = "plain.CONDITIONING", "negative.CONDITIONING"
FOLDER = "hyperlora_comparison"  # in the host's folder of outputs
INSTANTID_CFG = 4.5  # its authors say 4 to 5 at most


def painted(method: str, model: str, positive: str, negative: str = NEGATIVE, **values) -> dict[str, Node]:
    sampler = sampler_node(model, positive=positive, negative=negative, title=f"KSampler: {LABELS[method]}", **values)
    sampler.links["seed"], sampler.control = "seed.INT", FIXED
    save = save_node(f"{method}_decode.IMAGE", f"{FOLDER}/{LABELS[method]}")
    save.title = f"Save Image: {LABELS[method]}"
    return {
        f"{method}_sampler": sampler,
        f"{method}_decode": decode_node(f"{method}_sampler"),
        f"{method}_save": save,
    }


def hyperlora(method: str, checkpoint: str, weights: dict, full: bool) -> dict[str, Node]:
    label = LABELS[method]
    apply = apply_node(lora=f"{method}_lora", **weights)
    apply.title = f"Apply: {label}"
    if not full:
        del apply.links["base_lora"]
    return {
        f"{method}_model": Node("HyperLoRALoadModel", {"checkpoint": checkpoint}, title=f"Load: {label}"),
        f"{method}_identity": identity_node(hyperlora=f"{method}_model"),
        f"{method}_lora": lora_node(f"{method}_identity", f"{method}_model"),
        f"{method}_apply": apply,
        **painted(method, f"{method}_apply.model", "triggered.CONDITIONING"),
    }


def id_only() -> dict[str, Node]:
    return hyperlora("id", EDIT, {"weight": 0.8, "base_weight": 0.0}, full=False)


def full() -> dict[str, Node]:
    return hyperlora("full", FIDELITY, {"weight": 0.8, "base_weight": 0.4}, full=True)


def instantid() -> dict[str, Node]:
    return {
        **instantid_nodes(),
        "instantid_apply": Node(
            "ApplyInstantID",
            {"weight": 0.8},
            {
                "instantid": "instantid.INSTANTID",
                "insightface": "instantid_faces.FACEANALYSIS",
                "control_net": "instantid_control.CONTROL_NET",
                "image": "photo.IMAGE",
                "model": MODEL,
                "positive": PLAIN,
                "negative": NEGATIVE,
            },
        ),
        **painted(
            "instantid",
            "instantid_apply.MODEL",
            "instantid_apply.positive",
            "instantid_apply.negative",
            cfg=INSTANTID_CFG,
        ),
    }


def ip_adapter() -> dict[str, Node]:
    return {
        "ip_loader": Node(
            "IPAdapterUnifiedLoaderFaceID",
            {"preset": "FACEID PORTRAIT (style transfer)", "lora_strength": 0.6, "provider": "CPU"},
            {"model": MODEL},
        ),
        "ip_apply": Node(
            "IPAdapterFaceID",
            {"weight": 1.0, "weight_faceidv2": 1.0, "weight_type": "linear", "combine_embeds": "concat"},
            {"model": "ip_loader.MODEL", "ipadapter": "ip_loader.ipadapter", "image": "photo.IMAGE"},
        ),
        **painted("ip", "ip_apply.MODEL", PLAIN),
    }


def pulid() -> dict[str, Node]:
    return {
        "pulid_model": Node("PulidModelLoader", {"pulid_file": file_name("pulid")}, models=["pulid"]),
        "pulid_faces": Node("PulidInsightFaceLoader", {"provider": "CPU"}),
        "pulid_clip": Node("PulidEvaClipLoader"),
        "pulid_apply": Node(
            "ApplyPulid",
            {"method": "fidelity", "weight": 1.0},
            {
                "model": MODEL,
                "pulid": "pulid_model.PULID",
                "eva_clip": "pulid_clip.EVA_CLIP",
                "face_analysis": "pulid_faces.FACEANALYSIS",
                "image": "photo.IMAGE",
            },
        ),
        **painted("pulid", "pulid_apply.MODEL", PLAIN),
    }


METHODS: dict[str, Callable[[], dict[str, Node]]] = {
    "id": id_only,
    "full": full,
    "instantid": instantid,
    "ip": ip_adapter,
    "pulid": pulid,
}
LABELS = {
    "id": "HyperLoRA ID",
    "full": "HyperLoRA full",
    "instantid": "InstantID",
    "ip": "IP-Adapter FaceID Portrait",
    "pulid": "PuLID",
}
PACKS = {
    "instantid": INSTANTID_PACK,
    "ip": "ComfyUI_IPAdapter_plus (https://github.com/cubiq/ComfyUI_IPAdapter_plus)",
    "pulid": "PuLID_ComfyUI (https://github.com/cubiq/PuLID_ComfyUI)",
}
FILES = {"instantid": ("instantid",), "ip": ("ipadapter-faceid", "clip-vit-h"), "pulid": ("pulid",)}
NOTES = {
    "instantid": "**InstantID**: weight 0.8, CFG 4.5, as it wants 4 to 5 at most. It takes the pose of the head from the "
    "photo too.",
    "ip": "**IP-Adapter FaceID Portrait**: weight 1, the preset *style transfer*. Its *UNNORM* preset is stronger, and wants "
    "CFG 3 to 4 and a file of its own.",
    "pulid": "**PuLID**: method *fidelity*, weight 1. It fetches its EVA-CLIP by itself in the first run.",
}


def comparison(*peers: str) -> Workflow:
    """HyperLoRA ID and full beside `peers` on one sheet, after the photo itself."""
    methods = {method: METHODS[method]() for method in ("id", "full", *peers)}
    columns = ["photo.IMAGE", *(f"{method}_decode.IMAGE" for method in methods)]
    labels = ["photo", *(LABELS[method] for method in methods)]
    *others, last = [LABELS[peer] for peer in peers]
    names = f"{', '.join(others)} and {last}" if others else last
    nodes = {
        **checkpoint_nodes(),
        "face_analysis": loader_nodes()["face_analysis"],
        "photo": photo_node(),
        "seed": Node("PrimitiveInt", {"value": 1}, title="Seed for all", mine=True, control=FIXED),
        "text": Node("PrimitiveStringMultiline", {"value": PROMPT}, extra_height=90, title="Prompt for all", mine=True),
        "prompt": Node("HyperLoRATriggerPrompt", links={"prompt": "text.STRING"}, extra_height=60),
        "triggered": encode_node("prompt.prompt", "Prompt with trigger words"),
        "plain": encode_node("text.STRING", "Prompt"),
        "negative": negative_node(),
        "size": size_node(INSTANTID_SIDE, INSTANTID_SIDE),
    }
    for parts in methods.values():
        nodes |= parts
    nodes |= {
        "judge": Node("HyperLoRALoadFaceAnalysis", {"face_pack": "buffalo_l"}, title="Load Face Analysis: the judge"),
        "sheet": Node(
            "HyperLoRACompare",
            {"labels": "\n".join(labels), "picture_size": 512},
            {
                **{f"images_{number}": column for number, column in enumerate(columns, start=1)},
                "face_analysis": "judge.face_analysis",
                "reference": "photo.IMAGE",
            },
            extra_height=340,
        ),
        "save": save_node("sheet.sheet", f"{FOLDER}/sheet"),
    }
    files = [name for peer in peers for name in FILES[peer]] + ["buffalo_l"]
    ours = (*FIRST_PICTURE[:3], "edit", *FIRST_PICTURE[3:])
    return Workflow(
        nodes=nodes,
        groups=[
            Group(
                "1 The same for all",
                [
                    ["checkpoint", "clip_skip", "seed", "text", "size"],
                    ["photo", "face_analysis", "prompt"],
                    ["triggered", "plain", "negative"],
                ],
            ),
            *(
                Group(f"{number} {LABELS[method]}", [list(parts)])
                for number, (method, parts) in enumerate(methods.items(), start=2)
            ),
            Group(f"{len(methods) + 2} Side by side", [["judge", "sheet", "save"]]),
        ],
        note=f"""## HyperLoRA beside {names}

The same photo, seed, prompt, sampler and base model for every method; each with the CFG and weight that suit it.

The green nodes are yours to change:

1. **Load Image**: drop a photo of a person on it.
2. **Prompt for all**, **Seed for all**.
3. Press **Run**. **Compare Pictures** shows the sheet: the photo, then a column for each method, with the similarity under
   each picture. The sheet and each method's own picture are saved in the folder `{FOLDER}` of ComfyUI's outputs.

**HyperLoRA ID** and **HyperLoRA full** are the paper's two settings: the face only (the published *edit* weights), and
closest to the photo (the *fidelity* weights, with the base LoRA at 0.4 where a checkpoint has a base branch: the published
ones have a part of it inside). Weight 0.8, CFG 5, and trigger words before the prompt. With a checkpoint of your own that
has a base branch, choose it in both loaders.

{chr(10).join(NOTES[peer] + chr(10) for peer in peers)}
**The judge** is buffalo_l: HyperLoRA, InstantID and PuLID read antelopev2, and a network should not judge what was painted
for it. IP-Adapter reads buffalo_l, so its number is a little too good. One photo and one seed prove nothing: change both a
few times.

1016 x 1016, because at 1024 InstantID often paints a watermark.

## Node packs

{chr(10).join(f"- {PACKS[peer]}" for peer in peers)}

ComfyUI Manager installs them. They are not part of this pack.

{files_to_get(*files, first=ours)}""",
    )
