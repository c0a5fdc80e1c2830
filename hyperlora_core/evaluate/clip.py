"""CLIP as a measure: pictures and texts in one space (Radford et al. 2021, arXiv 2103.00020), through open_clip."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from ..errors import HyperLoRAError, cli
from ..packages import require
from ..vision import HEAD_SIZE, VisionEncoder, clip_pixels
from ..weights_check import check_safetensors

PURPOSE = "Measuring with CLIP"
# Hugging Face's names -> open_clip's, in this order; query, key and value are joined afterwards
RENAMED = (
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"embeddings\.class_embedding$", "class_embedding"),
    (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
    (r"layer_norm([12])\.", r"ln_\1."),
    (r"self_attn\.out_proj\.", "attn.out_proj."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
)
TURNED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
QUERY = re.compile(r"(.*)self_attn\.q_proj\.(weight|bias)")


class TokenView:
    """A picture as the mean of its patch tokens, where all there is of CLIP is the tower that HyperLoRA reads."""

    texts = None  # nothing to compare words with

    def __init__(self, vision: VisionEncoder):
        self.vision, self.name = vision, f"{vision.name}, patch tokens"

    def pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] each -> [n, c] of length 1."""
        return _unit(self.vision.encode_pictures(pictures)[:, 1:].mean(1))


class ClipView:
    """A whole CLIP: pictures and texts as vectors of one space."""

    def __init__(self, model: torch.nn.Module, name: str, device: str | torch.device = "cpu"):
        self.model, self.name, self.device = model.to(device).eval(), name, device

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "ClipView":
        """Read a .safetensors file of OpenAI's form (with QuickGELU), in Hugging Face's or open_clip's names.

        Raises HyperLoRAError when a tower is missing or tensors don't fit together.
        """
        path = Path(path)
        path = path / "model.safetensors" if path.is_dir() else path
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        try:
            model = _build(open_clip_names(tensors))
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise HyperLoRAError(
                f"{path} isn't a whole CLIP, with its image and its text tower ({reason}). "
                f"Use OpenAI's CLIP ViT-L/14 (run: {cli('download clip-vision')})."
            ) from error
        return cls(model, path.stem if path.stem != "model" else path.parent.name, device)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] each -> [n, c] of length 1."""
        size = self.model.visual.image_size[0]
        pixels = torch.stack([clip_pixels(picture, size) for picture in pictures])
        return _unit(self.model.encode_image(pixels.to(self.device)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> [n, c] of length 1; of a text, 77 tokens count."""
        tokens = require("open_clip", PURPOSE).tokenize(list(texts))
        return _unit(self.model.encode_text(tokens.to(self.device)))


def open_clip_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP's tensors under open_clip's names; those that have them already stay as they are."""
    if "visual.conv1.weight" in tensors:
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        if name in TURNED:
            renamed[TURNED[name]] = tensor.T.contiguous()
        elif match := QUERY.fullmatch(name):
            parts = [tensors[f"{match[1]}self_attn.{part}_proj.{match[2]}"] for part in "qkv"]
            renamed[f"{_renamed(match[1])}attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj|position_ids$", name):
            renamed[_renamed(name)] = tensor
    return renamed


def _renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _build(tensors: dict[str, Tensor]) -> torch.nn.Module:
    """open_clip's CLIP in the tensors' sizes."""
    made = require("open_clip.model", PURPOSE)
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    context, text_width = tensors["positional_embedding"].shape
    vision = made.CLIPVisionCfg(
        layers=_depth(tensors, "visual.transformer."),
        width=width,
        patch_size=patch,
        image_size=patch * round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5),
    )
    text = made.CLIPTextCfg(
        context_length=context,
        vocab_size=len(tensors["token_embedding.weight"]),
        width=text_width,
        heads=text_width // HEAD_SIZE,
        layers=_depth(tensors, "transformer."),
    )
    model = made.CLIP(tensors["text_projection"].shape[1], vision, text, quick_gelu=True)
    model.load_state_dict({"logit_scale": model.logit_scale, **tensors})
    return model.requires_grad_(False)


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(".ln_1.weight") for name in tensors)


def _unit(vectors: Tensor) -> np.ndarray:
    return functional.normalize(vectors.float(), dim=1).cpu().numpy()
