"""Stage 3: identities -> files; the LoRAs of a group of people are mixed in one pass over the basis."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..basis import LoRA
from ..encode import EncodeOptions
from ..errors import HyperLoRAError
from ..hyperlora import HyperLoRA
from ..identity import Identity
from ..lora import NAMINGS, check_weights, merge_branches, save_lora
from ..metadata import describe
from .encode import Encoded
from .journal import IDENTITIES, KINDS, LORAS, JournalFile, Record, output_path


@dataclass(frozen=True)
class BatchConfig:
    """What is made of the photos."""

    write: tuple[str, ...] = KINDS  # identities, loras
    options: EncodeOptions = field(default_factory=EncodeOptions)
    naming: str = NAMINGS[0]  # of the LoRAs' tensors
    base_weight: float = 0.0  # at which the base branch is joined into the LoRAs
    group: int = 16  # photos that are encoded, and people whose LoRAs are mixed, at once

    def check(self, hyper: HyperLoRA) -> None:
        """Raise HyperLoRAError for what can't be, before hours of work."""
        unknown = [kind for kind in self.write if kind not in KINDS]
        if unknown or not self.write:
            raise HyperLoRAError(f"Can't write {', '.join(unknown) or 'nothing'}: choose of {', '.join(KINDS)}.")
        if self.group < 1:
            raise HyperLoRAError(f"Groups of {self.group} are no groups: give --group 1 or more.")
        check_weights(1.0, self.base_weight)
        if self.base_weight and not hyper.has_base:
            raise HyperLoRAError(
                f"{hyper.name} has no base branch to be joined in: leave --base-weight out, or choose another checkpoint."
            )


class Writer:
    """Writes people's files below `out`, and their records into a journal file of run number `run`."""

    def __init__(self, hyper: HyperLoRA, config: BatchConfig, out: Path, run: int):
        self.hyper, self.config, self.out, self.run = hyper, config, out, run
        self.journal = JournalFile(out, run)

    def __call__(self, group: Sequence[Encoded], kinds: Sequence[str] | None = None) -> list[Record]:
        """Write a group's files, by default of the config's kinds. Raises HyperLoRAError when that fails, as for a full disk."""
        kinds = self.config.write if kinds is None else kinds
        identities = [encoded.identity for encoded in group if encoded.identity is not None]
        loras = self._loras(identities) if LORAS in kinds and identities else iter(())
        return [
            self._write(encoded, kinds, next(loras, None) if encoded.identity is not None else None)
            for encoded in group
        ]

    def _loras(self, identities: Sequence[Identity]) -> Iterator[LoRA]:
        weight = self.config.base_weight
        loras = self.hyper.loras(torch.stack([identity.coefficients for identity in identities]))
        if not weight:
            yield from loras
            return
        bases = self.hyper.loras(torch.stack([identity.base_coefficients for identity in identities]), "base")
        for lora, base in zip(loras, bases, strict=True):
            yield merge_branches(lora, base, 1.0, weight)

    def _write(self, encoded: Encoded, kinds: Sequence[str], lora: LoRA | None) -> Record:
        person, identity, failed = encoded
        record = Record(person.name, person.file, person.digest, identity.photo_count if identity else 0, failed)
        if identity is not None and person.outdated:
            self._delete(person.file)
        self.journal.write(record)
        if identity is not None and IDENTITIES in kinds:
            identity.save(output_path(self.out, IDENTITIES, person.file))
        if lora is not None:
            metadata = describe(person.file, identity, self.config.base_weight or None)
            # LoRA files are shared in half precision
            save_lora(lora, output_path(self.out, LORAS, person.file), self.config.naming, metadata, torch.float16)
        return record

    def _delete(self, file: str) -> None:
        for kind in KINDS:
            path = output_path(self.out, kind, file)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise HyperLoRAError(
                    f"{path} is of earlier photos and can't be deleted ({error.strerror}): close what uses it, or delete it."
                ) from error
