"""HyperLoRA as a network to train: in batches of different people, with gradients, a part of it at a time.

Which part a stage trains is said in groups of tensors:

    base        the base branch: its resampler and its bases
    trunk       the ID resampler's latents, self-attention, feed-forward and output
    clip        what reads CLIP tokens in it
    embedding   what reads the face embedding in it, and the ID projector
    bases       the ID branch's bases
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..basis import SCALE
from ..checkpoint import MODULES, assemble, save_hyperlora
from ..demo.hyperlora import HyperLoRASize, Modules, random_hyperlora
from ..encode import RECOGNITION
from ..hyperlora import HyperLoRA
from ..inject import LowRank

GROUPS = ("base", "trunk", "clip", "embedding", "bases")


class Network(nn.Module):
    """A HyperLoRA's modules under one roof; `hyper` is the same thing as everything else in the library knows it."""

    def __init__(self, modules: Modules, size: HyperLoRASize, seed: int):
        super().__init__()
        self.hyper: HyperLoRA = assemble(list(modules), random_hyperlora(modules, size, seed))
        self.encoder, self.basis = self.hyper.encoder, self.hyper.basis
        self.conditions = size.conditions

    def choose(self, groups: Sequence[str]) -> None:
        """Train these groups and freeze the others."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(group_of(name, self.conditions) in groups)

    def centre(self, group: str, inputs: Tensor) -> None:
        """Let what reads a condition begin at 0 for the mean of `inputs` [n, ..., c]; what was trained stays as it is.

        Face embeddings of different people point largely the same way (on the demo's portraits a cosine of 0.76), CLIP
        tokens likewise. Left in, that way is most of what the network sees: after the same 150 steps the right person's
        coefficients lowered the demo's loss by 0.5 % against another's, and by 2.4 % with this. Not in the paper.
        """
        layer = self._first_layer(group)
        with torch.no_grad():
            against = -layer.weight @ inputs.to(layer.weight).flatten(0, -2).mean(0)
            # no `if`: the estimate goes through here with tensors that have no values
            layer.bias.copy_(torch.where(layer.bias.any(), layer.bias, against))

    def leave_room(self) -> None:
        """The first of the ID branch's K bases changes nothing, and is all that the down bases begin with.

        So the coefficients (1, 0, ..., 0) are no LoRA at all, and near them it grows in proportion to the others: what is
        not known of a person stays as the model has it, instead of becoming somebody else's. Not in the paper.
        """
        with torch.no_grad():
            for name, bases in self.basis.named_parameters():
                if name.endswith("id_up_basis"):
                    bases[0] = 0
                    bases.register_hook(_but_the_first)
                elif name.endswith("id_down_basis"):
                    bases[1:] = 0

    def silence(self, condition: str) -> None:
        """What reads this condition changes nothing, as if it were bypassed: for a checkpoint that hasn't learned to yet."""
        first = condition == self.conditions[0]
        for block in self.encoder["resampler"].layers:
            nn.init.zeros_((block.attn2 if first else block.attn3).to_out[0].weight)

    def _first_layer(self, group: str) -> nn.Linear:
        if group == "embedding":
            return self.encoder["id_projector"][0]
        if group == "base":
            return self.encoder["base_resampler"].proj_in
        resampler = self.encoder["resampler"]
        return resampler.proj_in_2 if len(self.conditions) > 1 else resampler.proj_in

    def coefficients(self, embeds: Tensor | None, tokens: Tensor | None) -> Tensor:
        """The ID branch on n photos of n people: embeds [n, 512] and CLIP tokens [n, t, c] -> [n, 8 * modules, K].

        None: that condition is bypassed.
        """
        projected = None if embeds is None else self.encoder["id_projector"](embeds)
        if "embedding" not in self.conditions:
            return normed(self.encoder["resampler"](tokens))
        return normed(self.encoder["resampler"](projected, tokens))

    def base_coefficients(self, tokens: Tensor) -> Tensor:
        """The base branch on CLIP tokens [n, t, c] of face-blurred pictures -> [n, 8 * modules, K]."""
        return normed(self.encoder["base_resampler"](tokens))

    def low_rank(self, coefficients: Tensor, branch: str, weights: Tensor) -> dict[str, LowRank]:
        """One LoRA for each of n pictures at its weight [n]: coefficients [n, 8 * modules, K] -> key -> LowRank."""
        scale = (SCALE * weights).view(-1, 1, 1)
        return {key: LowRank(down, up * scale) for key, (down, up) in self.basis.mixed(coefficients, branch).items()}

    def save(self, folder: Path, recognition: str) -> None:
        """Write the checkpoint folder that every loader reads, in fp16; `recognition`: see encode.RECOGNITION."""
        parts = {MODULES: {name.replace("/", "."): value for name, value in self.basis.named_parameters()}}
        parts |= {part: module.state_dict() for part, module in self.encoder.items()}
        halves = {part: {name: t.detach().half() for name, t in tensors.items()} for part, tensors in parts.items()}
        hyper = assemble(list(self.hyper.module_names), halves, dtype=torch.float16)
        save_hyperlora(hyper, folder, {RECOGNITION: recognition})


def spread_loss(coefficients: Tensor) -> Tensor:
    """How far people's coefficients [n, 8 * modules, K] are from varying alike in all of their K directions; at best 0.

    The covariance over people of each row's coefficients has K variances that sum to 1 at most: the loss is the mean of
    log(1 / K) - log(variance). Without it the ID branch tells people apart in one or two directions, those of skin and
    hair colour, and the features stay in the noise. After VICReg (arXiv 2105.04906) and CorInfoMax (arXiv 2209.10999),
    which keep embeddings from collapsing so; not in HyperLoRA's paper.
    """
    n, _, k = coefficients.shape
    with torch.autocast(coefficients.device.type, enabled=False):  # small variances beside large ones
        apart = coefficients.float() - coefficients.float().mean(0)  # (n, l, K)
        covariance = torch.einsum("nli,nlj->lij", apart, apart) / n
        floor = 1e-4 / k * torch.eye(k, device=apart.device)  # the logarithm's, for directions in which nothing varies
        return -torch.linalg.slogdet(k * (covariance + floor)).logabsdet.mean() / k


def joined(one: Mapping[str, LowRank], other: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Two LoRAs on the same layers as one."""
    return {key: one[key].joined(other[key]) for key in one}


def group_of(name: str, conditions: Sequence[str]) -> str:
    """The group of a Network's tensor."""
    if name.startswith("encoder.base_resampler.") or re.match(r"basis\..*base_(down|up)_basis", name):
        return "base"
    if name.startswith("basis."):
        return "bases"
    if name.startswith("encoder.id_projector."):
        return "embedding"
    if re.search(r"proj_in_2\.|attn3", name):  # attn3 and its norms read the second condition, attn2 the first
        return conditions[1]
    if re.search(r"proj_in\.|attn2", name):
        return conditions[0]
    return "trunk"


def _but_the_first(gradient: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(gradient[:1]), gradient[1:]])


def normed(coefficients: Tensor) -> Tensor:
    """Coefficients [..., K] at length 1, as a LoRA is mixed from them."""
    coefficients = coefficients.float()
    return coefficients * torch.rsqrt(coefficients.square().sum(-1, keepdim=True) + 1e-8)
