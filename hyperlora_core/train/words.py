"""Words for what passes: a smile, glasses, age lines. Photos of one person show them or not, and no code of a person can say.

A reader that imitates people's codes (reader.py) wouldn't see them either, and no slider could move them. Therefore each has
coefficients of its own, one set for everybody, which the stage id-words learns beside what id-people found. Beside a caption
that says the word they would have nothing to learn, and the prompt's word would have nothing to do once they had: a photo that
shows it is drawn either with the caption's word or with these.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import HyperLoRAError

# word -> how a caption of the drawn portraits' vocabulary comes to say nothing of it
PASSING = {
    "smiling": ((", smiling", ""),),
    "glasses": ((" with glasses and", " with"), (" with glasses", "")),
    "old": (("an old person", "a person"),),
}


@dataclass(frozen=True)
class WordsConfig:
    """Which words have coefficients, and how these learn. Nothing else is trained beside them."""

    words: tuple[str, ...]  # of PASSING
    untold: float  # chance that a caption's word is left out, and its coefficients tell of it
    pace: float  # they learn at so many times the rate


def without(caption: str, word: str) -> str:
    """The caption without a word of PASSING."""
    for told, untold in PASSING[word]:
        caption = caption.replace(told, untold)
    return caption


def words_shown(captions: Sequence[str], words: Sequence[str]) -> Tensor:
    """1 where a caption has the word, else 0 [captions, words]."""
    found = [[re.search(rf"\b{word}\b", caption) is not None for word in words] for caption in captions]
    return torch.tensor(found, dtype=torch.float32).reshape(len(captions), len(words))


def leave_out(captions: Sequence[str], words: Sequence[str], left: Tensor) -> list[str]:
    """The captions without the words that `left` [captions, words] marks."""
    told = []
    for caption, flags in zip(captions, left, strict=True):
        for word, flag in zip(words, flags, strict=True):
            caption = without(caption, word) if flag else caption
        told.append(caption)
    return told


def check_words(config: WordsConfig, trains: Sequence[str]) -> None:
    """Raise HyperLoRAError for a section [words] that doesn't fit the stage."""
    if not config.words or set(config.words) - set(PASSING) or len(set(config.words)) < len(config.words):
        raise HyperLoRAError(f"words.words must be some of {', '.join(PASSING)}, not {list(config.words)}.")
    if not 0 < config.untold <= 1:
        raise HyperLoRAError(f"words.untold is a chance above 0, up to 1, not {config.untold}.")
    if trains:
        raise HyperLoRAError(
            f"Beside a section [words] nothing else is trained: leave {trains[0]} out of stage.trains."
        )
