"""An evaluation's figures as drawings, in SVG: small, sharp, and part of the page."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .figures import Figure
from .tables import defined

WIDE, LINE, LEFT, MARGIN = 620, 26, 210, 24  # px
HIGH = 380  # of a field with two axes
RIGHT = 400  # where its names begin
OURS, THEIRS = "#1b6ca8", "#b0641a"
TICKS = 6  # at most


class Point(NamedTuple):
    """A method in a field of two measures."""

    name: str
    x: Figure
    y: Figure
    theirs: bool = False  # the paper's own, without intervals


def intervals(title: str, row_figures: Mapping[str, Figure | None]) -> str:
    """A line per row: the figure as a dot, its interval as a bar."""
    rows = {row: figure for row, figure in row_figures.items() if defined(figure)}
    place, ticks = _scale([part for figure in rows.values() for part in figure], LEFT, WIDE - MARGIN)
    high = LINE * len(rows)
    parts = [_line(x, 0, x, high, "#ddd") + _text(x, high + 15, words, "middle") for x, words in ticks]
    for number, (row, figure) in enumerate(rows.items()):
        y = LINE * (number + 0.5)
        parts.append(_text(LEFT - 10, y + 4, row, "end"))
        parts.append(_line(place(figure.low), y, place(figure.high), y, OURS, 3))
        parts.append(f'<circle cx="{place(figure.value):.1f}" cy="{y:.1f}" r="5" fill="{OURS}"/>')
    return _drawing(title, WIDE, high + LINE, parts)


def field(title: str, x_title: str, y_title: str, points: Sequence[Point]) -> str:
    """Methods by two measures, numbered, with their intervals as crosses; the paper's as hollow rings."""
    bottom = HIGH - 2 * LINE
    x_place, x_ticks = _scale([part for point in points for part in point.x], 60, RIGHT - MARGIN)
    y_place, y_ticks = _scale([part for point in points for part in point.y], bottom, MARGIN)
    parts = [_line(x, MARGIN, x, bottom, "#ddd") + _text(x, bottom + 15, words, "middle") for x, words in x_ticks]
    parts += [_line(60, y, RIGHT - MARGIN, y, "#ddd") + _text(54, y + 4, words, "end") for y, words in y_ticks]
    parts += [_text((60 + RIGHT - MARGIN) / 2, HIGH - 10, x_title, "middle"), _text(4, 14, y_title, "start")]
    for number, (name, across, up, theirs) in enumerate(points, start=1):
        x, y, colour = x_place(across.value), y_place(up.value), THEIRS if theirs else OURS
        if not theirs:
            parts.append(_line(x_place(across.low), y, x_place(across.high), y, colour))
            parts.append(_line(x, y_place(up.low), x, y_place(up.high), colour))
        inside = "white" if theirs else colour
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{inside}" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(x + 7, y - 6, str(number), "start", colour))
        words = f"{number}  {name} (paper)" if theirs else f"{number}  {name}"
        parts.append(_text(RIGHT, MARGIN + 18 * number, words, "start", colour))
    return _drawing(title, WIDE, max(HIGH, MARGIN + 18 * (len(points) + 1)), parts)


def _scale(values: Sequence[float], start: float, end: float):
    """value -> pixel, and (pixel, words) of the ticks, for a range that holds all values."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * max(abs(high), 1e-3)
    low, high = low - room, high + room

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= TICKS)
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return place, [(place(value), f"{value:.6g}") for value in values]


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(words)}</text>'


def _drawing(title: str, width: float, high: float, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {high}" width="{width}" height="{high}" '
        f'font-family="sans-serif" font-size="12">\n{inside}\n</svg></figure>'
    )
