"""The CLIP image tower, through open_clip: a picture as the tokens of the last-but-one layer.

HyperLoRA reads CLIP ViT-L/14 (OpenAI weights, QuickGELU) before the last layer and before the final norm, class token
kept: 257 tokens of 1024 (paper, section 3.2). Only what those tokens need is loaded: no text tower, no last layer.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from .errors import HyperLoRAError, cli
from .hyperlora import MOST_AT_ONCE, where_it_is
from .packages import require
from .weights_check import check_safetensors

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_SIZE = 64  # of every CLIP image tower up to ViT-L; larger ones (ViT-H, ViT-g) aren't HyperLoRA's


def clip_crop(image: np.ndarray, size: int = 224) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [size, size, 3]: shorter side to `size` bicubic, then the centre."""
    picture = Image.fromarray(image)
    scale = size / min(picture.size)
    # the longer side is cut, not rounded, to whole pixels, as in CLIP's own preprocessing
    width, height = (max(size, int(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(picture)


def clip_pixels(image: np.ndarray, size: int = 224) -> Tensor:
    """uint8 [h, w, 3] -> float32 [3, size, size]: the crop above with CLIP's mean and deviation (reference section 3)."""
    pixels = torch.from_numpy(clip_crop(image, size) / np.float32(255))  # (size, size, 3)
    return ((pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(2, 0, 1).contiguous()


VIT_L_WIDTH, VIT_L_TOKENS = 1024, 257  # OpenAI's ViT-L/14, which the published checkpoints read


def wrong_tokens(width: int, tokens: int) -> bool:
    """Whether a tower of ViT-L/14's width isn't it: that for 336 pixels makes 577 tokens, which a resampler takes as gladly."""
    return width == VIT_L_WIDTH and tokens != VIT_L_TOKENS


class VisionEncoder:
    """A CLIP image tower read from a Hugging Face CLIP file (whole model or vision part) or an open_clip file.

    `bring(tower)` is called before it is used and answers on which device to compute, as in HyperLoRA.
    """

    bring: Callable[[torch.nn.Module], torch.device] = staticmethod(where_it_is)

    def __init__(self, tower: torch.nn.Module, name: str = "CLIP"):
        self.tower = tower
        self.name = name

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "VisionEncoder":
        """Read a `.safetensors` file, or the folder that holds one as `model.safetensors`.

        Raises HyperLoRAError when it isn't a CLIP image tower, or when open_clip is missing.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
        shapes = {name: shape for name, (_, shape) in check_safetensors(path).tensors.items()}
        layout = _layout(shapes, path)
        with safe_open(path, framework="pt") as file:
            tensors = {ours: read(file.get_tensor) for ours, read in layout.items()}
        tower = _build(tensors)
        tower.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
        return cls(tower.to(device), path.stem if path.stem != "model" else path.parent.name)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.tower.class_embedding.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return self.tower.positional_embedding.shape[0]

    @property
    def image_size(self) -> int:
        """Pixels along a side of the input."""
        return self.tower.image_size[0]

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [n, 3, h, w] from `clip_pixels` -> tokens [n, 1 + patches, width], in the tower's precision."""
        tower = self.tower
        pixels = pixels.to(self.bring(tower), tower.class_embedding.dtype)
        # the last layer was never loaded, so that the tower's last is CLIP's last but one
        features = tower.forward_intermediates(
            pixels, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        (patches,), (prefix,) = features["image_intermediates"], features["image_intermediates_prefix"]
        return torch.cat([prefix, patches], dim=1)  # (n, 1, width), (n, patches, width)

    def encode_pictures(self, pictures: Iterable[np.ndarray]) -> Tensor:
        """uint8 pictures [h, w, 3] -> tokens [n, 1 + patches, width]."""
        pixels = torch.stack([clip_pixels(picture, self.image_size) for picture in pictures])  # (n, 3, h, w)
        tokens = [self.encode(some) for some in pixels.split(MOST_AT_ONCE)]
        return torch.cat([some.to(tokens[0].device) for some in tokens])  # a host may run out of room in between


def is_clip_tower(path: str | Path, width: int) -> bool:
    """Whether the file's header shows a CLIP image tower whose tokens have `width` channels; nothing is loaded.

    Of ViT-L/14's width only that itself, for 224 pixels.
    """
    try:
        shapes = {name: shape for name, (_, shape) in check_safetensors(path).tensors.items()}
        layout = _layout(shapes, Path(path))
    except HyperLoRAError:
        return False
    return bool(layout) and _token_width(shapes) == width and not wrong_tokens(width, _token_count(shapes))


Reader = Callable[[Callable[[str], Tensor]], Tensor]

_TOP = {
    "class_embedding": ("embeddings.class_embedding", "class_embedding"),
    "positional_embedding": ("embeddings.position_embedding.weight", "positional_embedding"),
    "conv1.weight": ("embeddings.patch_embedding.weight", "conv1.weight"),
    "ln_pre.weight": ("pre_layrnorm.weight", "ln_pre.weight"),
    "ln_pre.bias": ("pre_layrnorm.bias", "ln_pre.bias"),
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _token_width(shapes: dict[str, tuple[int, ...]]) -> int:
    return next(shape[-1] for name, shape in shapes.items() if name.endswith("class_embedding"))


def _token_count(shapes: dict[str, tuple[int, ...]]) -> int:
    """Of the tensor beside the class embedding: a whole CLIP has the text's positions, too."""
    stem = next(name for name in shapes if name.endswith("class_embedding")).removesuffix("class_embedding")
    names = stem + "position_embedding.weight", stem + "positional_embedding"
    return next((shapes[name][0] for name in names if name in shapes), 0)


def _layout(shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, Reader]:
    """open_clip's tensor names, each with how to read it from this file; the last layer is left out."""
    for prefix in ("vision_model.", "model.vision_model.", ""):
        if f"{prefix}embeddings.class_embedding" in shapes:
            return _hugging_face(shapes, prefix, path)
    for prefix in ("visual.", ""):
        if f"{prefix}class_embedding" in shapes:
            return _open_clip(shapes, prefix, path)
    raise HyperLoRAError(
        f"{path} is not a CLIP image tower: it has no class embedding. "
        f"Choose OpenAI's CLIP ViT-L/14 (run: {cli('download clip-vision')})."
    )


def _depth(shapes: dict[str, tuple[int, ...]], blocks: str, path: Path) -> int:
    numbers = [int(name[len(blocks) :].split(".")[0]) for name in shapes if name.startswith(blocks)]
    if not numbers:
        raise HyperLoRAError(f"{path} is not a whole CLIP image tower: it has no {blocks}* tensors. Download it again.")
    return 1 + max(numbers)


def _check(layout: dict[str, tuple[str, ...]], shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    missing = [name for names in layout.values() for name in names if name not in shapes]
    if missing:
        raise HyperLoRAError(
            f"{path} is not a whole CLIP image tower: {missing[0]} and {len(missing) - 1} more tensors are missing. "
            "Choose OpenAI's CLIP ViT-L/14, or download it again."
        )


def _readers(layout: dict[str, tuple[str, ...]]) -> dict[str, Reader]:
    def reader(names: tuple[str, ...]) -> Reader:
        return lambda get: get(names[0]) if len(names) == 1 else torch.cat([get(name) for name in names])

    return {ours: reader(names) for ours, names in layout.items()}


def _hugging_face(shapes: dict[str, tuple[int, ...]], prefix: str, path: Path) -> dict[str, Reader]:
    layout: dict[str, tuple[str, ...]] = {ours: (prefix + theirs,) for ours, (theirs, _) in _TOP.items()}
    blocks = f"{prefix}encoder.layers."
    for i in range(_depth(shapes, blocks, path) - 1):
        ours, theirs = f"transformer.resblocks.{i}.", f"{blocks}{i}."
        for kind in ("weight", "bias"):
            # open_clip keeps query, key and value in one matrix
            layout[f"{ours}attn.in_proj_{kind}"] = tuple(f"{theirs}self_attn.{part}_proj.{kind}" for part in "qkv")
            for our_name, their_name in _BLOCK.items():
                layout[f"{ours}{our_name}.{kind}"] = (f"{theirs}{their_name}.{kind}",)
    _check(layout, shapes, path)
    return _readers(layout)


def _open_clip(shapes: dict[str, tuple[int, ...]], prefix: str, path: Path) -> dict[str, Reader]:
    names = [name for _, name in _TOP.values()]
    for i in range(_depth(shapes, f"{prefix}transformer.resblocks.", path) - 1):
        for kind in ("weight", "bias"):
            names.append(f"transformer.resblocks.{i}.attn.in_proj_{kind}")
            names += [f"transformer.resblocks.{i}.{block}.{kind}" for block in _BLOCK]
    layout = {name: (prefix + name,) for name in names}
    _check(layout, shapes, path)
    return _readers(layout)


def _build(tensors: dict[str, Tensor]) -> torch.nn.Module:
    """open_clip's VisionTransformer in the tensors' sizes, its weights not yet there (meta)."""
    open_clip_model = require("open_clip.model", "Reading the photo with CLIP")
    transformer = require("open_clip.transformer", "Reading the photo with CLIP")
    width, _, patch, _ = tensors["conv1.weight"].shape
    positions = tensors["positional_embedding"].shape[0]
    grid = round((positions - 1) ** 0.5)
    with torch.device("meta"):
        tower = transformer.VisionTransformer(
            image_size=grid * patch,
            patch_size=patch,
            width=width,
            layers=sum(name.endswith("ln_1.weight") for name in tensors),
            heads=max(1, width // HEAD_SIZE),
            mlp_ratio=tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
            act_layer=open_clip_model.QuickGELU,
        )
    # what follows the penultimate layer is not part of this encoder
    tower.ln_post = torch.nn.Identity()
    tower.proj = None
    return tower.eval().requires_grad_(False)
