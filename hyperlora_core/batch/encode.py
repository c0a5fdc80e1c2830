"""Stage 2: what photos show -> identities, with CLIP tower and resampler on photos of several people at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..encode import EncodeOptions
from ..errors import HyperLoRAError
from ..hyperlora import HyperLoRA, normed
from ..identity import Identity
from ..vision import VisionEncoder
from .faces import Look, Wanted
from .people import Person

Item = TypeVar("Item")


class Encoded(NamedTuple):
    """A person whose photos have all been looked at."""

    person: Person
    identity: Identity | None  # None: no photo could be used
    failed: tuple[str, ...]  # a sentence for each photo that couldn't


class PeopleEncoder:
    """A checkpoint and its CLIP tower, for photos of many people."""

    def __init__(self, hyper: HyperLoRA, vision: VisionEncoder | None):
        self.hyper, self.vision = hyper, vision

    def wanted(self, options: EncodeOptions) -> Wanted:
        """What stage 1 has to make of a photo."""
        size = 0 if self.vision is None else self.vision.image_size
        return Wanted(options, size, self.hyper.uses_clip_tokens, self.hyper.has_base)

    def people(
        self, seen: Iterable[tuple[Person, Look | str]], at_once: int, tick: Callable[[int], None] | None = None
    ) -> Iterator[Encoded]:
        """All photos of people with at least one, person after person, with what they show or why not -> the people.

        `at_once` photos go through the networks together; a person's photos are summed up as they come, so that only so
        many are held. `tick(photos)` is called after each step.
        """
        tally = None
        for batch in batches(seen, at_once):
            looks = [look for _, look in batch if isinstance(look, Look)]
            results = iter(self._coefficients(looks))
            for person, look in batch:
                if tally is None:
                    tally = _Tally(person)
                tally.add(next(results) if isinstance(look, Look) else look)
                if tally.complete:
                    yield tally.finish(self.hyper)
                    tally = None
            if tick is not None:
                tick(len(batch))

    def _coefficients(self, looks: Sequence[Look]) -> list[tuple[Tensor, ...] | str]:
        """Each photo's coefficients [8 * modules, K], for ID and, where there is one, base branch; or why it has none."""
        if not looks:
            return []
        try:
            return list(zip(*self._run(looks), strict=True))
        except HyperLoRAError as error:  # one photo's numbers spoil the batch
            if len(looks) == 1:
                return [str(error)]
            return [result for look in looks for result in self._coefficients([look])]
        except torch.cuda.OutOfMemoryError as error:
            raise HyperLoRAError(
                f"The device's memory doesn't hold {len(looks)} photos at once: give fewer (--group), or --device cpu."
            ) from error

    def _run(self, looks: Sequence[Look]) -> list[Tensor]:
        hyper = self.hyper
        pictures = [look.identity for look in looks if look.identity is not None]
        own = len(pictures)
        pictures += [look.base for look in looks if look.base is not None]
        tokens = self.vision.encode_pictures(pictures) if pictures else None  # (own + n, t, c)
        embeds = torch.from_numpy(np.stack([look.embedding for look in looks])) if hyper.uses_id_embeds else None
        branches = [hyper.photo_coefficients(tokens[:own] if own else None, embeds)]
        if hyper.has_base:
            branches.append(hyper.photo_coefficients(tokens[own:], branch="base"))
        return [branch.cpu() for branch in branches]


class _Tally:
    """A person's photos, summed up."""

    def __init__(self, person: Person):
        self.person, self.used, self.seen = person, 0, 0
        self.sums: list[Tensor] = []  # of ID and base branch
        self.failed: list[str] = []

    def add(self, result: tuple[Tensor, ...] | str) -> None:
        self.seen += 1
        if isinstance(result, str):
            self.failed.append(result)
            return
        self.used += 1
        if self.sums:
            for total, new in zip(self.sums, result, strict=True):
                total += new
        else:
            self.sums = [new.clone() for new in result]

    @property
    def complete(self) -> bool:
        return self.seen == len(self.person.photos)

    def finish(self, hyper: HyperLoRA) -> Encoded:
        failed = (*self.person.problems, *self.failed)
        if not self.used:
            return Encoded(self.person, None, failed)
        coefficients = [normed(total / self.used) for total in self.sums]
        identity = Identity(
            coefficients=coefficients[0],
            base_coefficients=coefficients[1] if len(coefficients) > 1 else None,
            fingerprint=hyper.fingerprint,
            checkpoint=hyper.name,
            photo_count=self.used,
        )
        return Encoded(self.person, identity, failed)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch
