"""HyperLoRA: photos' conditions in, a LoRA out (arXiv 2503.16944).

    M = sum_k alpha_k M_id^k  (+ sum_k beta_k M_base^k)        (paper, equation 2)

A resampler turns the conditions into coefficients; the coefficients mix a basis of K low-rank matrices per layer.
ID and Base branch are mixed apart.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .basis import VECTORS_PER_MODULE, Basis, LoRA
from .errors import HyperLoRAError
from .resampler import IDProjector, Resampler

BRANCHES = ("id", "base")
MOST_AT_ONCE = 16  # photos: what they need on the way is bounded, however many there are


def where_it_is(module: nn.Module) -> torch.device:
    """The device of a module that nobody moves."""
    return next(module.parameters()).device


class HyperLoRA:
    """A loaded checkpoint; made by `load_hyperlora`.

    Two modules, since they are needed at different times: `encoder` (resamplers and ID projector, 0.2 GB) for photos,
    `basis` (3 GB) for the LoRA. `bring(module)` is called before one is used and answers on which device to compute:
    a host that moves models between devices puts its own way there.
    """

    bring: Callable[[nn.Module], torch.device] = staticmethod(where_it_is)

    def __init__(
        self,
        resampler: Resampler,
        basis: Basis,
        id_projector: IDProjector | None = None,
        base_resampler: Resampler | None = None,
        *,
        name: str = "HyperLoRA",
        fingerprint: str = "",
        dtype: torch.dtype = torch.float32,
        metadata: Mapping[str, str] | None = None,
    ):
        self.encoder = nn.ModuleDict({"resampler": resampler})
        if id_projector is not None:
            self.encoder["id_projector"] = id_projector
        if base_resampler is not None:
            self.encoder["base_resampler"] = base_resampler
        self.basis = basis
        self.name = name
        self.fingerprint = fingerprint
        self.dtype = dtype
        self.metadata = dict(metadata or {})

    @property
    def module_names(self) -> tuple[str, ...]:
        """The UNet's attention modules, in the order of the coefficients."""
        return self.basis.module_names

    @property
    def has_base(self) -> bool:
        return "base_resampler" in self.encoder

    @property
    def uses_id_embeds(self) -> bool:
        """Whether the ID branch reads the face embedding."""
        return "id_projector" in self.encoder

    @property
    def uses_clip_tokens(self) -> bool:
        """Whether the ID branch reads CLIP tokens."""
        return not self.uses_id_embeds or self.encoder["resampler"].config.condition_2 is not None

    @property
    def clip_width(self) -> int | None:
        """Channels of the CLIP tokens that the checkpoint reads; None if it reads none."""
        config = self.encoder["resampler"].config
        if self.uses_clip_tokens:
            return config.condition_2 if self.uses_id_embeds else config.condition
        return self.encoder["base_resampler"].config.condition if self.has_base else None

    @torch.no_grad()
    def coefficients(
        self,
        clip_tokens: Tensor | None = None,
        id_embeds: Tensor | None = None,
        weights: Tensor | Sequence[float] | None = None,
        branch: str = "id",
    ) -> Tensor:
        """Conditions of n photos of one person -> coefficients [8 * modules, K], each row of length 1.

        clip_tokens [n, t, c] (penultimate CLIP layer), id_embeds [n, 512] (unit length), weights [n]: share of each
        photo in the mean, which is taken before the rows are normed (reference section 1; default: equal).
        The base branch reads CLIP tokens only, those of the face-blurred picture.
        Raises HyperLoRAError for a missing, superfluous or ill-shaped condition, and for NaN.
        """
        per_photo = self.photo_coefficients(clip_tokens, id_embeds, branch)
        share = photo_shares(weights, len(per_photo)).to(per_photo)  # (n)
        return normed(torch.einsum("n,nlk->lk", share, per_photo))

    @torch.no_grad()
    def photo_coefficients(
        self, clip_tokens: Tensor | None = None, id_embeds: Tensor | None = None, branch: str = "id"
    ) -> Tensor:
        """Conditions of n photos, of whomever -> fp32 [n, 8 * modules, K]: `normed` of a person's mean is the identity.

        Conditions and errors as in `coefficients`.
        """
        self._require_branch(branch)
        resampler = self.encoder["base_resampler" if branch == "base" else "resampler"]
        conditions = self._conditions(clip_tokens, id_embeds, branch, self.bring(self.encoder))
        groups = zip(*(condition.split(MOST_AT_ONCE) for condition in conditions), strict=True)
        per_photo = torch.cat([resampler(*some).float() for some in groups])  # (n, 8 * modules, K)
        if not torch.isfinite(per_photo).all():
            raise HyperLoRAError(
                f"{self.name} gives NaN for this photo in {self.dtype}: load it in fp32, or download it again if that doesn't help."
            )
        return per_photo

    @torch.no_grad()
    def lora(self, coefficients: Tensor, branch: str = "id") -> LoRA:
        """coefficients [8 * modules, K] -> `<module>_to_q.lora_down.weight` [r, in], `.lora_up.weight` [out, r], `.alpha`.

        Tensors are contiguous and own their memory, in `dtype`, on the device of the computation.
        """
        return self.basis.mix(self._mixable(coefficients, branch), branch)

    @torch.no_grad()
    def loras(self, coefficients: Tensor, branch: str = "id") -> list[LoRA]:
        """coefficients [n, 8 * modules, K] of n people -> their LoRAs, as `lora` gives them, in one pass over the basis.

        All n are in memory at once, in fp32 46 MB each for SDXL's ID branch: give large crowds in groups.
        """
        return self.basis.mix_many(self._mixable(coefficients, branch, dims=3), branch)

    def _mixable(self, coefficients: Tensor, branch: str, dims: int = 2) -> Tensor:
        """The coefficients where and how the basis mixes them, checked."""
        self._require_branch(branch)
        expected = (VECTORS_PER_MODULE * len(self.module_names), self.basis.size)
        if coefficients.ndim != dims or tuple(coefficients.shape[-2:]) != expected:
            raise HyperLoRAError(
                f"These coefficients are {list(coefficients.shape)}, but {self.name} needs {list(expected)}: "
                "they belong to another checkpoint. Encode the photos again with this one."
            )
        if not torch.isfinite(coefficients).all():
            raise HyperLoRAError("These coefficients hold NaN or infinity. Encode the photos again.")
        return coefficients.to(self.bring(self.basis), self.dtype)

    def _require_branch(self, branch: str) -> None:
        if branch not in BRANCHES:
            raise HyperLoRAError(f"Unknown branch {branch!r}: choose 'id' or 'base'.")
        if branch == "base" and not self.has_base:
            raise HyperLoRAError(
                f"{self.name} has no base branch (no base_resampler.safetensors; the published checkpoints have none). "
                "Use branch 'id' alone, or a checkpoint trained with a base branch."
            )

    def _conditions(
        self, clip_tokens: Tensor | None, id_embeds: Tensor | None, branch: str, device: torch.device
    ) -> list[Tensor]:
        """The resampler's inputs in its order, checked: ID tokens first, CLIP tokens second."""
        wants_embeds = branch == "id" and self.uses_id_embeds
        wants_tokens = branch == "base" or self.uses_clip_tokens
        conditions = []
        for wanted, given, what in (
            (wants_embeds, id_embeds, "face embeddings (id_embeds)"),
            (wants_tokens, clip_tokens, "CLIP tokens (clip_tokens)"),
        ):
            if wanted and given is None:
                raise HyperLoRAError(f"The {branch} branch of {self.name} needs {what}, and none were given.")
            if given is not None and not wanted:
                raise HyperLoRAError(f"The {branch} branch of {self.name} doesn't read {what}: leave them out.")
        if wants_embeds:
            projector = self.encoder["id_projector"]
            _check_condition(id_embeds, "id_embeds", 2, projector[0].in_features, self.name)
            conditions.append(projector(id_embeds.to(device, self.dtype)))  # (n, 512) -> (n, tokens, width)
        if wants_tokens:
            config = self.encoder["base_resampler" if branch == "base" else "resampler"].config
            width = config.condition_2 if wants_embeds else config.condition
            _check_condition(clip_tokens, "clip_tokens", 3, width, self.name)
            conditions.append(clip_tokens.to(device, self.dtype))  # (n, t, c)
        if len({len(condition) for condition in conditions}) > 1:
            raise HyperLoRAError(
                f"{len(clip_tokens)} photos in clip_tokens, but {len(id_embeds)} in id_embeds: give one of each per photo."
            )
        return conditions


def normed(mean: Tensor) -> Tensor:
    """[..., 8 * modules, K] -> the same with rows of length 1 (reference section 1)."""
    return mean * torch.rsqrt(mean.square().sum(-1, keepdim=True) + 1e-8)


def _check_condition(condition: Tensor, what: str, dims: int, width: int, name: str) -> None:
    if condition.ndim != dims or condition.shape[-1] != width or condition.numel() == 0:
        shape = f"[n, {width}]" if dims == 2 else f"[n, tokens, {width}]"
        raise HyperLoRAError(
            f"{what} is {list(condition.shape)}, but {name} needs {shape}: use the encoder that it was trained with."
        )
    if not torch.isfinite(condition).all():
        raise HyperLoRAError(f"{what} holds NaN or infinity. Check the photo and the encoder's precision.")


def photo_shares(weights: Tensor | Sequence[float] | None, photos: int) -> Tensor:
    """Weights of the photos, scaled to sum to 1."""
    if weights is None:
        return torch.full((photos,), 1 / photos)
    weights = torch.as_tensor(weights, dtype=torch.float32)
    usable = weights.shape == (photos,) and bool(torch.isfinite(weights).all() and (weights >= 0).all())
    if not usable or not 0 < weights.sum() < float("inf"):
        raise HyperLoRAError(
            f"Photo weights {weights.tolist()} don't fit {photos} photo(s): give one number of at least 0 per photo, not all 0."
        )
    return weights / weights.sum()
