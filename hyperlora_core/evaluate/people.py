"""Who is evaluated: photos to learn a person from, and pictures that are known to show the same person."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..demo.portraits import HELD_OUT, Identity, Portrait, Scene, render
from ..errors import HyperLoRAError
from ..photo import PhotoSource
from .attributes import Looks, asked, right, shown

# what a scene is drawn for; each has its own randomness, so that more photos or prompts change no other picture
_PHOTO, _GALLERY, _PROMPT, _RENDER = range(4)


@dataclass(frozen=True)
class Person:
    """One person, drawn or photographed."""

    name: str  # of files
    photos: tuple[PhotoSource, ...]  # the references: what HyperLoRA sees
    looks: Looks  # what the first photo shows besides the person; empty where nobody knows
    gallery: PhotoSource | None  # another photo, by which the person is to be found among all
    prompts: Mapping[str, tuple[str, ...]]  # name of a set -> a prompt for each picture
    renders: tuple[np.ndarray, ...]  # uint8 [h, w, 3]: what a perfect method would paint for the prompts "scenes"
    noise: tuple[int, ...]  # seeds, one for each picture
    tags: tuple[str, ...]  # what files of these pictures are called, behind the person's name
    digest: str = ""  # changes with the photos, where these are files


def drawn_people(
    count: int,
    photos: int,
    prompts: Mapping[str, list[list[str]]],
    chances: Mapping[str, float],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Person]:
    """The first `count` held-out people of the drawn world, with `photos` references each.

    `prompts`: set -> for each picture the prompts to choose from, so that nothing that the prompt asks for is in the
    first photo already. `chances`: `Scene.random`'s, for photos and gallery. `progress(done, count)` may raise to stop.
    """
    if not 2 <= count <= len(HELD_OUT):
        raise HyperLoRAError(f"{count} people can't be told from each other: give at least 2 (--people).")
    people = []
    for number, person_seed in enumerate(HELD_OUT[:count]):
        people.append(_person(number, person_seed, photos, prompts, chances, seed))
        if progress is not None:
            progress(number + 1, count)
    return people


def _person(
    number: int,
    person_seed: int,
    photos: int,
    prompts: Mapping[str, list[list[str]]],
    chances: Mapping[str, float],
    seed: int,
) -> Person:
    who = Identity.from_seed(person_seed)

    def rng(kind: int, index: int = 0) -> np.random.Generator:
        return np.random.default_rng([seed, person_seed, kind, index])

    def portrait(kind: int, index: int = 0) -> Portrait:
        return render(who, Scene.random(rng(kind, index), **chances))

    references = [portrait(_PHOTO, index) for index in range(photos)]
    looks = shown(references[0].caption)
    chosen = {
        name: tuple(_unlike(looks, choice, rng(_PROMPT, index)) for index, choice in enumerate(choices))
        for name, choices in prompts.items()
    }
    renders = [
        render(who, Scene.random(rng(_RENDER, index)).told(prompt)).image
        for index, prompt in enumerate(chosen["scenes"])
    ]
    pictures = max(map(len, chosen.values()))
    return Person(
        name=f"{number:03}",
        photos=tuple(reference.image for reference in references),
        looks=looks,
        gallery=portrait(_GALLERY).image,
        prompts=chosen,
        renders=tuple(renders),
        noise=tuple(
            int(np.random.SeedSequence([seed, person_seed, index]).generate_state(1)[0]) for index in range(pictures)
        ),
        tags=tuple(map(str, range(pictures))),
    )


def _unlike(looks: Looks, prompts: list[str], rng: np.random.Generator) -> str:
    """One of `prompts` that asks for nothing that `looks` has; any, where there is none."""
    start = int(rng.integers(len(prompts)))
    turned = prompts[start:] + prompts[:start]
    return next((prompt for prompt in turned if not any(right(asked(prompt), looks).values())), turned[0])
