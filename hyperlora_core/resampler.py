"""The perceiver resampler that turns a photo's conditions into basis coefficients (HyperLoRA, arXiv 2503.16944, fig. 3).

Read top to bottom: attention, one block, the whole network, the projector of the face embedding.
Every size is read off a checkpoint's tensors; only the head size is a constant of the method.
"""

import weakref
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

HEAD_SIZE = 64


@dataclass(frozen=True)
class ResamplerConfig:
    width: int  # of the latents
    inner: int  # heads * HEAD_SIZE
    depth: int
    feed_forward: int
    latents: int  # 8 per attention module of the UNet
    out: int  # K, the number of basis matrices
    condition: int  # width of the first condition
    condition_2: int | None  # width of the second; None: the checkpoint has one

    @classmethod
    def from_tensors(cls, shapes: dict[str, tuple[int, ...]]) -> "ResamplerConfig":
        """Read every size off the tensor shapes of a `resampler.safetensors`; KeyError names a missing tensor."""
        _, latents, width = shapes["latents"]
        depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        return cls(
            width=width,
            inner=shapes["layers.0.attn1.to_q.weight"][0],
            depth=depth,
            feed_forward=shapes["layers.0.ff.net.0.proj.weight"][0],
            latents=latents,
            out=shapes["proj_out.weight"][0],
            condition=shapes["proj_in.weight"][1],
            condition_2=shapes["proj_in_2.weight"][1] if "proj_in_2.weight" in shapes else None,
        )


class Attention(nn.Module):
    def __init__(self, width: int, inner: int, operations, **factory):
        super().__init__()
        self.to_q = operations.Linear(width, inner, bias=False, **factory)
        self.to_k = operations.Linear(width, inner, bias=False, **factory)
        self.to_v = operations.Linear(width, inner, bias=False, **factory)
        self.to_out = nn.ModuleList([operations.Linear(inner, width, bias=False, **factory)])

    def forward(self, latents: Tensor, context: Tensor) -> Tensor:
        # latents (n, l, width), context (n, t, width)
        q, k, v = (
            rearrange(x, "n t (h d) -> n h t d", d=HEAD_SIZE)
            for x in (self.to_q(latents), self.to_k(context), self.to_v(context))
        )
        mixed = scaled_dot_product_attention(q, k, v)  # (n, h, l, d) x (n, h, d, t) x (n, h, t, d) -> (n, h, l, d)
        return self.to_out[0](rearrange(mixed, "n h l d -> n l (h d)"))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, operations, **factory):
        super().__init__()
        # the nesting only gives the published tensor names: ff.net.0.proj and ff.net.2
        expand = nn.Module()
        expand.proj = operations.Linear(width, hidden, **factory)
        self.net = nn.ModuleList([expand, nn.Identity(), operations.Linear(hidden, width, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](gelu(self.net[0].proj(x)))  # (n, l, width) -> (n, l, hidden) -> (n, l, width)


class Block(nn.Module):
    """Self-attention over the latents, then cross-attention to each condition, then a feed-forward; all pre-norm."""

    def __init__(self, config: ResamplerConfig, operations, **factory):
        super().__init__()
        width, inner = config.width, config.inner

        def norm():
            return operations.LayerNorm(width, **factory)

        def attention():
            return Attention(width, inner, operations, **factory)

        self.norm_attn1, self.attn1 = norm(), attention()
        self.norm_attn2_l, self.norm_attn2_x, self.attn2 = norm(), norm(), attention()
        if config.condition_2 is not None:
            self.norm_attn3_l, self.norm_attn3_y, self.attn3 = norm(), norm(), attention()
        self.norm_ff = norm()
        self.ff = FeedForward(width, config.feed_forward, operations, **factory)

    def forward(self, latents: Tensor, x: Tensor | None, y: Tensor | None) -> Tensor:
        return self.conditioned(self.self_attended(latents), x, y)

    def self_attended(self, latents: Tensor) -> Tensor:
        normed = self.norm_attn1(latents)
        return latents + self.attn1(normed, normed)

    def conditioned(self, latents: Tensor, x: Tensor | None, y: Tensor | None) -> Tensor:
        if x is not None:
            latents = latents + self.attn2(self.norm_attn2_l(latents), self.norm_attn2_x(x))
        if y is not None:
            latents = latents + self.attn3(self.norm_attn3_l(latents), self.norm_attn3_y(y))
        return latents + self.ff(self.norm_ff(latents))


class _Kept(NamedTuple):
    """A result, and what it was computed from."""

    of: tuple
    versions: list[tuple[weakref.ref, int | None]]
    value: Tensor

    def holds(self, of: tuple, versions: list[tuple[weakref.ref, int | None]]) -> bool:
        """Whether it would come out the same."""
        same = (now() is then() and new == old for (now, new), (then, old) in zip(versions, self.versions, strict=True))
        return self.of == of and all(same)


class Resampler(nn.Module):
    def __init__(self, config: ResamplerConfig, operations=nn, **factory):
        super().__init__()
        self.config = config
        self.latents = nn.Parameter(torch.empty(1, config.latents, config.width, **factory))
        self.proj_in = operations.Linear(config.condition, config.width, **factory)
        if config.condition_2 is not None:
            self.proj_in_2 = operations.Linear(config.condition_2, config.width, **factory)
        self.layers = nn.ModuleList(Block(config, operations, **factory) for _ in range(config.depth))
        self.proj_out = operations.Linear(config.width, config.out, **factory)
        self._kept: _Kept | None = None  # see _begun

    def forward(self, condition: Tensor | None, condition_2: Tensor | None = None) -> Tensor:
        """condition [n, t, c], condition_2 [n, t2, c2] where the checkpoint has two -> [n, 8 * modules, K], not normed.

        A condition that is None is bypassed, as training does stage by stage (reference section 4); one must be there.
        """
        given = condition if condition is not None else condition_2
        x = None if condition is None else self.proj_in(condition)  # (n, t, width)
        y = None if condition_2 is None else self.proj_in_2(condition_2)  # (n, t2, width)
        first, *others = self.layers
        latents = first.conditioned(self._begun(given).expand(len(given), -1, -1), x, y)  # (n, l, width)
        for block in others:
            latents = block(latents, x, y)
        return self.proj_out(latents)  # (n, l, K)

    def _begun(self, like: Tensor) -> Tensor:
        """The latents after the first block's self-attention, [1, l, width]: the same for every photo, so computed once.

        Kept in main memory, 5 MB in fp32 for SDXL, not in a GPU's; not kept while these weights learn.
        """
        first = self.layers[0]
        weights = [self.latents, *first.norm_attn1.parameters(), *first.attn1.parameters()]
        if any(weight.requires_grad for weight in weights):
            return first.self_attended(self.latents.to(like))
        of = like.device, like.dtype, torch.is_autocast_enabled(like.device.type)
        # references that keep no weight alive: a host may put others in its place. Inference tensors count no versions
        versions = [(weakref.ref(weight), None if weight.is_inference() else weight._version) for weight in weights]
        if self._kept is None or not self._kept.holds(of, versions):
            with torch.no_grad():
                self._kept = _Kept(of, versions, first.self_attended(self.latents.to(like)).cpu())
        return self._kept.value.to(like)


class IDProjector(nn.Sequential):
    """A face embedding as a few tokens: Linear 512 -> tokens * width, LayerNorm(width)."""

    def __init__(self, embed: int, tokens: int, width: int, operations=nn, **factory):
        super().__init__(
            operations.Linear(embed, tokens * width, **factory),
            nn.Unflatten(-1, (tokens, width)),
            operations.LayerNorm(width, **factory),
        )

    @classmethod
    def from_tensors(cls, shapes: dict[str, tuple[int, ...]], operations=nn, **factory) -> "IDProjector":
        outputs, embed = shapes["0.weight"]
        (width,) = shapes["2.weight"]
        return cls(embed, outputs // width, width, operations, **factory)
