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
    """A picture with its score in words: how like the person it is, and the person's place among all by likeness.

    `cosine`: to the person's photo, None where no face was found.
    """
    if cosine is None:
        return Cell(picture, ["no face found"], BAD)
    place = "nearest" if rank == 1 else f"place {rank}"
    return Cell(picture, [f"likeness {cosine:.2f}, {place} of {among}"], GOOD if rank == 1 else POOR)


def draw_grid(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], tile: int = TILE) -> Image.Image:
    """Rows of (title, cells) under the columns' `heads`."""
    lines = max(len(cell.lines) for _, row in rows for cell in row)
    high = LINE + tile + LINE * lines + 6
    sheet = Image.new("RGB", (tile * len(heads), LINE + high * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LINE * 0.7)
    for x, head in enumerate(heads):
        pen.text((x * tile + tile / 2, LINE / 2), head, "black", font, anchor="mm")
    for y, (title, row) in enumerate(rows):
        top = LINE + y * high
        pen.text((2, top + LINE / 2), title, POOR, font, anchor="lm")
        for x, cell in enumerate(row):
            fitted = ImageOps.fit(Image.fromarray(cell.picture), (tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(fitted, (x * tile, top + LINE))
            for n, line in enumerate(cell.lines):
                at = (x * tile + tile / 2, top + LINE + tile + LINE * (n + 0.5))
                pen.text(at, line, cell.colour, font, anchor="mm")
    return sheet
