"""A person as the hypernetwork knows them: coefficients, 0.3 MB, to save, name, share, weight and blend."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import HyperLoRAError
from .files import write_tensors, written_aside
from .hyperlora import HyperLoRA
from .weights_check import check_safetensors

FORMAT = "hyperlora.identity"
FORMAT_VERSION = "1"
PROVENANCE = ("fingerprint", "checkpoint", "photo_count")  # what is kept of an Identity besides its tensors


@dataclass(frozen=True)
class Identity:
    """Coefficients of the ID branch, those of the base branch where there is one, and where they come from."""

    coefficients: Tensor  # [8 * modules, K]
    base_coefficients: Tensor | None = None  # [8 * modules, K]
    fingerprint: str = ""  # of the checkpoint that they belong to
    checkpoint: str = ""  # its name, for people
    photo_count: int = 1

    def save(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a `.safetensors` (fp16: 0.29 MB a branch for SDXL) with its provenance as metadata."""
        tensors = {"id": self.coefficients.to("cpu", dtype).contiguous()}
        if self.base_coefficients is not None:
            tensors["base"] = self.base_coefficients.to("cpu", dtype).contiguous()
        provenance = {name: getattr(self, name) for name in PROVENANCE}
        with written_aside(path) as aside:
            metadata = {"format": FORMAT, "version": FORMAT_VERSION, "provenance": json.dumps(provenance)}
            write_tensors(aside, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Read what `save` wrote, as fp32. Raises HyperLoRAError when the file is something else."""
        path = Path(path)
        if not path.exists():
            raise HyperLoRAError(f"{path} doesn't exist. Save an identity first, or choose another file.")
        metadata = check_safetensors(path).metadata
        if metadata.get("format") != FORMAT:
            raise HyperLoRAError(
                f"{path} is not an identity: choose a file that Save Identity (or Identity.save) wrote."
            )
        if metadata.get("version") != FORMAT_VERSION:
            raise HyperLoRAError(
                f"{path} was saved in format version {metadata.get('version')}; this is version {FORMAT_VERSION}. "
                "Update HyperLoRA, or encode the photos again."
            )
        with safe_open(path, framework="pt") as file:
            # a copy, since the mapped file may be saved over while the identity lives on
            tensors = {name: file.get_tensor(name).float().clone() for name in file.keys()}  # noqa: SIM118
        if "id" not in tensors:
            raise HyperLoRAError(f"{path} holds no coefficients. Encode the photos again and save anew.")
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise HyperLoRAError(f"{path} holds NaN. Encode the photos again and save anew.")
        return cls(tensors["id"], tensors.get("base"), **_provenance(metadata, path))

    @staticmethod
    def blend(parts: "Iterable[tuple[Identity, float]]") -> "Identity":
        """Mix people of one checkpoint: the weighted mean of their coefficients (linear, as in the paper's section 4.5).

        Weights are scaled to sum to 1, so that (a, 1), (b, 1) is the middle; they may be negative.
        Raises HyperLoRAError for different checkpoints, weights that sum to 0, or nothing to blend.
        """
        parts = list(parts)
        if not parts:
            raise HyperLoRAError("There is nothing to blend: give at least one identity.")
        first = parts[0][0]
        for identity, _ in parts[1:]:
            if identity.fingerprint != first.fingerprint or identity.coefficients.shape != first.coefficients.shape:
                raise HyperLoRAError(
                    f"These identities belong to different checkpoints ({first.checkpoint or first.fingerprint} and "
                    f"{identity.checkpoint or identity.fingerprint}): encode all photos with one checkpoint."
                )
        total = sum(weight for _, weight in parts)
        if not 1e-6 < total < float("inf"):
            weights = ", ".join(f"{weight:g}" for _, weight in parts)
            raise HyperLoRAError(f"The blend weights {weights} don't sum to a usable number: make their sum positive.")

        def mean(tensors: list[Tensor]) -> Tensor:
            return sum(tensor * (weight / total) for tensor, (_, weight) in zip(tensors, parts, strict=True))

        bases = [identity.base_coefficients for identity, _ in parts]
        return replace(
            first,
            coefficients=mean([identity.coefficients for identity, _ in parts]),
            base_coefficients=None if any(base is None for base in bases) else mean(bases),
            photo_count=sum(identity.photo_count for identity, _ in parts),
        )

    def require_checkpoint(self, hyper: HyperLoRA) -> None:
        """Raise HyperLoRAError unless the identity was encoded with this very checkpoint."""
        if self.fingerprint != hyper.fingerprint:
            raise HyperLoRAError(
                f"This identity was encoded with {self.checkpoint or 'another checkpoint'} ({self.fingerprint}), not with "
                f"{hyper.name} ({hyper.fingerprint}): load that checkpoint, or encode the photos again with this one."
            )


def _provenance(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What an identity's file says of its origin; what a later version may say besides is passed over."""
    try:
        told = json.loads(metadata["provenance"])
        return {name: told[name] for name in PROVENANCE}
    except (KeyError, TypeError, ValueError) as error:
        raise HyperLoRAError(
            f"{path} doesn't say which checkpoint it belongs to. Encode the photos again and save anew."
        ) from error
