"""CLIP's tokenizers, made at run time from the vocabulary that open_clip installs: this project holds no copy."""

import functools
import gzip
import importlib.util
import json
import tempfile
from pathlib import Path

from .. import packages
from ..errors import MissingPackageError

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49408
POSITIONS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
# 256 bytes, the same at a word's end, and the two markers are no merges
MERGES = VOCABULARY_SIZE - 2 * 256 - 2


@functools.cache
def sdxl_tokenizers() -> tuple:
    """Return SDXL's two tokenizers (transformers.CLIPTokenizer); one pads with the end marker, the other with "!".

    Raises MissingPackageError without transformers or open_clip.
    """
    transformers = packages.require("transformers", "Reading a prompt")
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder))
        first, second = (
            transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=POSITIONS) for _ in range(2)
        )
    # set afterwards, because a pad token given at the start counts as a marker wherever a prompt holds an exclamation
    # mark; ComfyUI and open_clip read it as punctuation
    second.pad_token = "!"
    return first, second


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt, the files that every version of transformers reads, into `folder`."""
    merges = _merges()
    symbols = _byte_symbols()
    words = [symbol + "</w>" for symbol in symbols]
    tokens = [*symbols, *words, *(merge.replace(" ", "") for merge in merges), START, END]
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _merges() -> list[str]:
    # find_spec only locates the package: importing open_clip itself would cost seconds
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise MissingPackageError(
            "Reading a prompt needs the vocabulary that open_clip installs. "
            f"Run: python -m pip install {packages.PIP_NAMES['open_clip']}"
        )
    with gzip.open(Path(spec.origin).with_name(VOCABULARY_FILE), "rt", encoding="utf-8") as lines:
        return lines.read().split("\n")[1 : MERGES + 1]


def _byte_symbols() -> list[str]:
    """One visible character for each of the 256 bytes, in the vocabulary's order: printable Latin-1 first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
