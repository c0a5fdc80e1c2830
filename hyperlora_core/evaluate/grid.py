"""Grids of pictures with words below each, to look at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE = 160  # px
LINE = 16  # px, of text
GOOD, POOR, BAD = (20, 110, 40), (90, 90, 90), (180, 30, 30)


class Cell(NamedTuple):
    """A picture uint8 [h, w, 3] with lines of text below it."""

    picture: np.ndarray
    lines: Sequence[str]
    colour: tuple[int, int, int] = POOR


def scored(picture: np.ndarray, cosine: float | None, rank: int, among: int) -> Cell:
    """A picture with its score in words: how like the person it is, and the person's place among all by similarity.

    `cosine`: to the person's photo, None where no face was found.
    """
    if cosine is None:
        return Cell(picture, ["no face found"], BAD)
    place = "nearest" if rank == 1 else f"place {rank}"
    return Cell(picture, [f"similarity {cosine:.2f}, {place} of {among}"], GOOD if rank == 1 else POOR)


def draw_grid(
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell | None]]],
    tile: int | tuple[int, int] = TILE,
    line: int = LINE,
) -> Image.Image:
    """Rows of (title, cells) under the columns' `heads`; None leaves a place empty.

    `tile`: width and height of a picture, or both in one; one of another form gets white edges. `line`: height of a line
    of text. Pixels.
    """
    wide, tall = (tile, tile) if isinstance(tile, int) else tile
    font = ImageFont.load_default(size=line * 0.7)
    tops = [_wrapped(head, font, wide - 4) for head in heads]
    head_high = line * max(map(len, tops))
    lines = max((len(cell.lines) for _, row in rows for cell in row if cell), default=0)
    title_high = line if any(title for title, _ in rows) else 0
    high = title_high + tall + line * lines + 6
    sheet = Image.new("RGB", (wide * len(heads), head_high + high * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, words in enumerate(tops):
        for n, text in enumerate(words):
            pen.text((x * wide + wide / 2, line * (n + 0.5)), text, "black", font, anchor="mm")
    for y, (title, row) in enumerate(rows):
        top = head_high + y * high
        pen.text((2, top + line / 2), title, POOR, font, anchor="lm")
        for x, cell in enumerate(row):
            if cell is None:
                continue
            fitted = ImageOps.pad(Image.fromarray(cell.picture), (wide, tall), Image.Resampling.LANCZOS, color="white")
            sheet.paste(fitted, (x * wide, top + title_high))
            for n, text in enumerate(cell.lines):
                at = (x * wide + wide / 2, top + title_high + tall + line * (n + 0.5))
                pen.text(at, text, cell.colour, font, anchor="mm")
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of words that are at most `width` pixels wide, where a single word isn't wider."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
