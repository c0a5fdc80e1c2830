"""PuLID's losses (Guo et al. 2024, arXiv 2404.16022, section 3), for HyperLoRA's ID branch.

With Q and K the queries and keys of the UNet's cross-attentions, with (id) and without the identity's LoRA, on the same
noisy pictures and prompts:

    semantic    || softmax(K Q_id^T / sqrt d) Q_id - softmax(K Q^T / sqrt d) Q ||^2
    layout      || Q_id - Q ||^2
    identity    1 - cos(face(photo), face(picture sampled from pure noise in a few steps))

The first two keep what the prompt says; the third asks for the person in what the model really paints. Norms are means
over elements and layers. PuLID samples with a distilled model in four steps; SDXL itself needs a few more.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import packages
from ..errors import HyperLoRAError
from ..face.analyzer import FaceAnalyzer
from ..face.pack import RECOGNITION
from .data import pictures_from_model
from .diffusion import Schedule
from .onnx_torch import OnnxNetwork
from .sources import Sources

CROP = 112  # px, of the aligned face that recognition networks read
DETECTION_SIZE = 640  # px, of the detector's input; small pictures are looked at in twice their size


@dataclass(frozen=True)
class PuLIDConfig:
    """Weights of the losses (PuLID's own: 0.6, 0.1, 1.0; 0: not computed), and how the identity loss samples."""

    semantic: float
    layout: float
    identity: float
    pictures: int  # of each batch that are sampled; the loss is their mean, so that this decides over time, not weight
    steps: int  # from pure noise to the picture
    gradient_steps: int  # the last ones of these, through which gradients go


def check_pulid(config: PuLIDConfig, conditions: Sequence[str]) -> None:
    """Raise HyperLoRAError for numbers that mean nothing, and for a stage without an ID branch."""
    if min(config.semantic, config.layout, config.identity) < 0:
        raise HyperLoRAError("pulid.semantic, layout and identity are weights: give 0 or more.")
    if config.pictures < 1 or not 1 <= config.gradient_steps <= config.steps:
        raise HyperLoRAError("pulid.pictures and gradient_steps must be at least 1, and steps not fewer than those.")
    if not conditions:
        raise HyperLoRAError("PuLID's losses are the ID branch's, which this stage has not: leave out [pulid].")


Seen = dict[tuple[str, str], Tensor]  # (attention, "to_q" or "to_k") -> [n, tokens, width]


class CrossAttentions:
    """Hooks on the queries and keys of a UNet's cross-attentions. Injected LoRAs count if they were hooked in before."""

    def __init__(self, unet: nn.Module):
        self._seen: Seen | None = None
        self.heads = {name: module.heads for name, module in unet.named_modules() if name.endswith("attn2")}
        layers = dict(unet.named_modules())
        for name in self.heads:
            for side in ("to_q", "to_k"):
                layers[f"{name}.{side}"].register_forward_hook(self._hook((name, side)))

    @contextmanager
    def watch(self) -> Iterator[Seen]:
        """Collect what the calls in the block compute.

        Blocks that are computed again later, for gradients, aren't in it: the tensors are the first ones.
        """
        self._seen = seen = {}
        try:
            yield seen
        finally:
            self._seen = None

    def _hook(self, key: tuple[str, str]) -> Callable[[nn.Module, tuple, Tensor], None]:
        def keep(_layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
            if self._seen is not None:
                self._seen[key] = output

        return keep

    def differences(self, without: Seen, with_id: Seen) -> tuple[Tensor, Tensor]:
        """The semantic and the layout loss of each picture [n], means over all layers."""
        semantic, layout = [], []
        for name, heads in self.heads.items():
            keys, queries, queries_id = (
                seen.unflatten(-1, (heads, -1)).transpose(1, 2)  # (n, t, h d) -> (n, h, t, d)
                for seen in (without[name, "to_k"], without[name, "to_q"], with_id[name, "to_q"])
            )
            # attention turned round: the text asks, the picture's queries answer
            answer = functional.scaled_dot_product_attention(keys, queries, queries)
            answer_id = functional.scaled_dot_product_attention(keys.to(queries_id), queries_id, queries_id)
            semantic.append((answer_id.float() - answer.float()).square().mean((1, 2, 3)))
            layout.append((queries_id.float() - queries.float()).square().mean((1, 2, 3)))
        return torch.stack(semantic).mean(0), torch.stack(layout).mean(0)


def sample(
    predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, signal: Tensor, steps: int, gradient_steps: int
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502) from pure noise [n, 4, h, w] to latents; gradients through the last steps.

    `predict(noisy, steps [n])` gives the noise; `signal`: the schedule's cumulated alphas.
    """
    times = torch.linspace(len(signal) - 1, 0, steps + 1, device=noise.device).round().long()
    signal, noisy = signal.to(noise.device), noise
    for i, (time, following) in enumerate(pairwise(times)):
        with torch.set_grad_enabled(torch.is_grad_enabled() and i >= steps - gradient_steps):
            predicted = predict(noisy, time.expand(len(noise)))
        now = signal[time]
        later = signal[following] if i < steps - 1 else torch.ones_like(now)  # the last step takes all noise away
        clean = (noisy - (1 - now).sqrt() * predicted) / now.sqrt()
        noisy = later.sqrt() * clean + (1 - later).sqrt() * predicted
    return noisy


class Likeness(nn.Module):
    """Who is in a picture, with gradients: the frozen autoencoder's decoder and the face pack's recognition."""

    def __init__(self, vae: nn.Module, faces: FaceAnalyzer):
        super().__init__()
        recognition = faces.app.models[RECOGNITION]
        self.vae, self.faces = vae.requires_grad_(False), faces
        self.network = OnnxNetwork(recognition.model_file)
        # the pack's norm of its pixels 0..255; ours are -1..1
        self.slope, self.shift = 127.5 / recognition.input_std, (127.5 - recognition.input_mean) / recognition.input_std

    def forward(self, latents: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """latents [n, 4, h, w], references [n, 512] -> 1 - cos [n], 0 where no face is found, and where one is, bool [n]."""
        pictures = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float()
        crops = [self._to_crop(picture) for picture in pictures_from_model(pictures.detach())]
        found = torch.tensor([crop is not None for crop in crops], device=latents.device)
        distances = pictures.new_zeros(len(pictures))
        if found.any():
            affine = torch.tensor(np.stack([crop for crop in crops if crop is not None])).to(pictures)
            embeds = self.network(self.slope * aligned_faces(pictures[found], affine) + self.shift)
            likeness = functional.cosine_similarity(embeds, references[found].to(embeds), dim=-1)
            distances = distances.masked_scatter(found, 1 - likeness)
        return distances, found

    def _to_crop(self, picture: np.ndarray) -> np.ndarray | None:
        """The affine map [2, 3] from the largest face's pixels to insightface's aligned crop; None without a face."""
        size = min(DETECTION_SIZE, 2 * min(picture.shape[:2]) // 32 * 32)
        detections = self.faces.detect(picture, (size,))
        if not detections:
            return None
        largest = self.faces.choose(picture, detections, "largest", "the sampled picture")
        align = packages.require("insightface.utils.face_align", "Aligning faces")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of scikit-image, at every face
            return align.estimate_norm(largest.keypoints, CROP)


def aligned_faces(pictures: Tensor, affine: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] in -1..1 and maps [n, 2, 3] from their pixels to the crop's -> crops [n, 3, 112, 112].

    As cv2.warpAffine makes them: bilinear, black beyond the edges.
    """
    height, width = pictures.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(CROP, device=pictures.device).to(affine),) * 2, indexing="ij")
    places = torch.stack([x, y], -1).view(1, -1, 2) - affine[:, None, :, 2]  # (n, 112 * 112, 2)
    places = places @ torch.linalg.inv(affine[:, :, :2]).mT  # pixels of the picture, whose centres are whole numbers
    grid = (2 * places + 1) / places.new_tensor([width, height]) - 1
    grid = grid.view(-1, CROP, CROP, 2)
    return functional.grid_sample(pictures + 1, grid, padding_mode="zeros", align_corners=False) - 1


class PuLID(nn.Module):
    """The losses whose weights aren't 0, for `Stage`; their pictures are those of scenario (a)."""

    def __init__(self, config: PuLIDConfig, likeness: Likeness | None, signal: Tensor):
        """`likeness` is needed for the identity loss; `signal`: the noise schedule's cumulated alphas."""
        super().__init__()
        self.config, self.likeness, self.signal = config, likeness, signal

    @property
    def aligns(self) -> bool:
        """Whether the cross-attentions are to be watched."""
        return bool(self.config.semantic or self.config.layout)

    def alignment(self, semantic: Tensor, layout: Tensor, told: Tensor) -> dict[str, Tensor]:
        """The terms of the loss; semantic, layout [n] as from `CrossAttentions.differences`, told bool [n]."""
        terms = {"semantic": self.config.semantic * semantic, "layout": self.config.layout * layout}
        return {name: (term * told).sum() / len(told) for name, term in terms.items()}

    def identity(
        self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, references: Tensor
    ) -> dict[str, Tensor]:
        """The identity loss of pictures that begin as `noise` [m, 4, h, w] and should show `references` [m, 512].

        "no face" is the share in which no face was found; they count nothing, and it has no gradient.
        """
        if not len(noise):
            return {"identity": references.sum() * 0.0, "no face": references.sum() * 0.0}
        latents = sample(predict, noise, self.signal, self.config.steps, self.config.gradient_steps)
        # decoders and face networks overflow or blur in half precision
        with torch.autocast(noise.device.type, enabled=False):
            distances, found = self.likeness(latents.float(), references)
        return {"identity": self.config.identity * distances.mean(), "no face": 1 - found.float().mean()}


def make_pulid(config: PuLIDConfig, vae: nn.Module, sources: Sources, recognition: str) -> PuLID:
    """The losses with the face pack of `sources`, which must be the one that made the photos' embeddings."""
    likeness = None
    if config.identity:
        faces = FaceAnalyzer.load(sources.faces, "cpu")
        if faces.recognition_name != recognition:
            raise HyperLoRAError(
                f"{sources.data} holds embeddings of {recognition}, but the face pack {sources.faces} is of "
                f"{faces.recognition_name}: choose the pack that made them (--faces)."
            )
        likeness = Likeness(vae, faces)
    return PuLID(config, likeness, Schedule().signal)
