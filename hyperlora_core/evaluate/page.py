"""An evaluation's report as a page that opens in any browser, without a network: words and drawings in it, grids beside it."""

import html
from collections.abc import Mapping, Sequence

from . import paper
from .figures import Figure
from .plots import Point, field, intervals
from .protocol import NONE
from .tables import COLUMNS, Figures, Table, defined

STYLE = """
body { font: 15px/1.5 sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; } td, th { border: 1px solid #ccc; padding: 4px 8px; text-align: left; }
td:first-child { font-weight: bold; } h2 { font-size: 17px; margin-top: 2em; } .wide { overflow-x: auto; }
figure { display: inline-block; margin: 1em 1em 0 0; vertical-align: top; } figcaption { font-weight: bold; }
img { max-width: 100%; border: 1px solid #ccc; } summary { cursor: pointer; font-weight: bold; margin-top: 1em; }
"""


def page(
    head: str,
    notes: Sequence[str],
    tables: Sequence[Table],
    theirs: Sequence[Table],
    figures: Figures,
    grids: Mapping[str, str],
) -> str:
    """The whole page. `head`: a sentence on what was measured; `theirs`: the paper's tables; `grids`: file -> title."""
    drawings = [
        intervals(column.title, {row: of.get(name) for row, of in figures.items()})
        for name, column in COLUMNS.items()
        if any(defined(of.get(name)) for of in figures.values())
    ]
    body = [
        "<h1>Evaluation</h1>",
        f"<p>{html.escape(head)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>" if notes else "",
        *(f'<div class="wide">{table.html()}</div>' for table in tables),
        "<h2>Drawings</h2>",
        _trade_off(figures),
        *drawings,
        *(f'<div class="wide">{table.html()}</div>' for table in theirs),
        "<h2>Pictures</h2>",
        *(
            f"<details{' open' if number == 0 else ''}><summary>{html.escape(title)}</summary>"
            f'<img loading="lazy" src="{html.escape(file)}" alt="{html.escape(title)}"></details>'
            for number, (file, title) in enumerate(grids.items())
        ),
    ]
    inside = "\n".join(part for part in body if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{STYLE}</style></head><body>\n{inside}\n</body></html>\n"
    )


def _trade_off(figures: Figures) -> str:
    """Similarity against editability, ours and the paper's; nothing where either wasn't measured."""
    ours = [
        Point(row, of["ID Sim"], of["CLIP-I"])
        for row, of in figures.items()
        if row != NONE and defined(of.get("ID Sim")) and defined(of.get("CLIP-I"))
    ]
    theirs = [
        Point(method, *(Figure(of[name], of[name], of[name]) for name in ("ID Sim", "CLIP-I")), True)
        for method, of in paper.FIGURES.items()
        if "CLIP-I" in of
    ]
    title = "Similarity and editability (rings: the paper's own figures, of other people, prompts and networks)"
    return field(title, "ID Sim", "CLIP-I to none", [*ours, *theirs]) if ours else ""
