"""Pictures side by side under their names, with how like the person each one is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .errors import HyperLoRAError
from .evaluate.grid import BAD, GOOD, POOR, Cell, draw_grid
from .similarity import Similarity, mean_similarity

SIDE = 384  # px, the longer one of a picture in the grid
LARGEST = 16384  # px, of a side of the sheet: what browsers and viewers still show
TEXT = 20  # a line's height is the picture's side / TEXT, and legible
SMALLEST_LINE = 16  # px
ITSELF = 0.999  # cosine from which a picture is the reference photo, and no contender


class Column(NamedTuple):
    """What one way of painting gave, picture after picture."""

    label: str
    pictures: Sequence[np.ndarray]  # uint8 [h, w, 3]
    scores: Sequence[Similarity] | None = None  # one for each picture


def comparison(columns: Sequence[Column], side: int = SIDE) -> np.ndarray:
    """A sheet uint8 [h, w, 3]: a column each, under its label; a row for each picture, the best of the row in green.

    `side`: pixels of a picture's longer side; the form is that of the first picture, others get white edges.
    Raises HyperLoRAError for a sheet that no viewer shows.
    """
    height, width = columns[0].pictures[0].shape[:2]
    scale = side / max(height, width)
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    count = max(len(column.pictures) for column in columns)
    line = max(SMALLEST_LINE, side // TEXT)
    large = max(tile[0] * len(columns), (tile[1] + 3 * line) * count)
    if large > LARGEST:
        raise HyperLoRAError(
            f"{len(columns)} x {count} pictures of {tile[0]} x {tile[1]} pixels make a sheet of {large} pixels, more than "
            f"the {LARGEST} that viewers show: choose a smaller picture size, or fewer pictures."
        )
    rows = []
    for number in range(count):
        row = [_score(column, number) for column in columns]
        cosines = [score.cosine for score in row if score and score.cosine is not None]
        best = max((cosine for cosine in cosines if cosine < ITSELF), default=None)
        cells = [_cell(column, number, score, best) for column, score in zip(columns, row, strict=True)]
        rows.append((f"{number + 1}" if count > 1 else "", cells))
    return np.asarray(draw_grid([column.label for column in columns], rows, tile, line))


def report(columns: Sequence[Column]) -> str:
    """A line per column: each picture's similarity, and their mean."""
    lines = []
    for label, _, scores in columns:
        if scores is None:
            continue
        each = ", ".join("no face" if score.cosine is None else f"{score.cosine:.2f}" for score in scores)
        lines.append(f"{label}: {each}" + (f"; mean {mean_similarity(scores):.2f}" if len(scores) > 1 else ""))
    return "\n".join(lines)


def column_labels(text: str, count: int) -> list[str]:
    """A label from each line; A, B, C... where a line is empty or missing. Raises HyperLoRAError for lines left over."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if len(lines) > count:
        raise HyperLoRAError(
            f'There are {len(lines)} labels for {count} column(s), and "{lines[count]}" has none: write a line for each '
            "connected input, in their order."
        )
    lines += [""] * (count - len(lines))
    return [line or chr(ord("A") + number) for number, line in enumerate(lines)]


def _score(column: Column, number: int) -> Similarity | None:
    return column.scores[number] if column.scores is not None and number < len(column.pictures) else None


def _cell(column: Column, number: int, score: Similarity | None, best: float | None) -> Cell | None:
    if number >= len(column.pictures):
        return None
    if score is None:
        return Cell(column.pictures[number], [])
    if score.cosine is None:
        return Cell(column.pictures[number], ["no face found"], BAD)
    colour = GOOD if score.cosine == best else POOR
    return Cell(column.pictures[number], [f"similarity {score.cosine:.2f}"], colour)
