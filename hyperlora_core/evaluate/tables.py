"""An evaluation's figures as tables, for Markdown and for HTML."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from . import paper
from .figures import Figure

Figures = Mapping[str, Mapping[str, Figure]]  # row -> measure -> figure


class Column(NamedTuple):
    """A measure in the table."""

    title: str
    percent: bool = False
    digits: int = 3


COLUMNS = {
    "retrieval": Column("right person found (rank 1)", True),
    "similarity": Column("similarity, 0 none to 1 true"),
    "editability": Column("edits kept", True),
    "prompt": Column("prompt shown", True),
    "carried": Column("clothes and background of the photo", True),
    "fidelity": Column("face fidelity (CLIP-I)"),
    "ID Sim": Column("ID Sim"),
    "CLIP-I": Column("CLIP-I to none"),
    "CLIP-T": Column("CLIP-T"),
    "copy-paste": Column("copy-paste"),
    "sharpness": Column("sharpness", digits=0),
    "cosine": Column("cosine"),
    "faces": Column("faces found", True),
}
COMPARED = ("retrieval", "similarity", "editability", "carried", *paper.MEASURES)
# figures that are also told apart: the prefix of their names -> title of the table
APART = {
    "editability": "Edits kept, by what the prompt asks for",
    "CLIP-T": "CLIP-T, by the class of the prompt",
}


class Table(NamedTuple):
    """A table of words."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """With the title above it."""
        lines = [self.title + ":", ""] if self.title else []
        lines += [_line(self.heads), "|---" * len(self.heads) + "|", *map(_line, self.rows)]
        return "\n".join(lines)

    def html(self) -> str:
        """Likewise."""
        heads = "".join(f"<th>{html.escape(head)}</th>" for head in self.heads)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows
        )
        title = f"<h2>{html.escape(self.title)}</h2>\n" if self.title else ""
        return f"{title}<table>\n<tr>{heads}</tr>\n{rows}</table>"


def figure_tables(figures: Figures, compared: Mapping[tuple[str, str], Mapping[str, Figure]]) -> list[Table]:
    """The main table, the figures that are told apart, and the differences; what is nowhere defined is left out."""
    tables = [_table("", COLUMNS, figures)]
    for of, title in APART.items():
        names = [
            name
            for name in dict.fromkeys(name for row in figures.values() for name in row)
            if name.startswith(f"{of}, ")
        ]
        columns = {name: COLUMNS[of]._replace(title=name.partition(", ")[2].replace("_", " ")) for name in names}
        tables.append(_table(title, columns, figures))
    differences = {f"{one} minus {other}": named for (one, other), named in compared.items()}
    tables.append(_table("Differences, person by person", {name: COLUMNS[name] for name in COMPARED}, differences, "+"))
    return [table for table in tables if table.rows]


def speed_table(speeds: Mapping[str, np.ndarray]) -> Table | None:
    """Medians over pictures of `speeds` (row -> seconds [pictures, 2]); None where nothing was painted here."""
    rows = [
        [row, *(f"{1000 * part:.0f}" for part in (*np.median(seconds, 0), np.median(seconds.sum(1))))]
        for row, seconds in speeds.items()
        if len(seconds)
    ]
    heads = ["method", "preprocessing", "inference", "total"]
    return Table("Speed: ms for a picture, median", heads, rows) if rows else None


def paper_tables(with_speeds: bool) -> list[Table]:
    """The authors' figures, marked as theirs."""
    cells = [
        [f"{method} (paper)", *(f"{of[name]:.3f}" if name in of else "-" for name in paper.MEASURES)]
        for method, of in paper.FIGURES.items()
    ]
    tables = [Table(paper.ABOUT, ["method", *(COLUMNS[name].title for name in paper.MEASURES)], cells)]
    if with_speeds:
        rows = [[f"{name} (paper)", *map(str, (*of, sum(of)))] for name, of in paper.SPEEDS.items()]
        tables.append(Table(paper.ABOUT_SPEEDS, ["method", "preprocessing", "inference", "total"], rows))
    return tables


def defined(figure: Figure | None) -> bool:
    """Whether there is such a figure."""
    return figure is not None and math.isfinite(figure.value)


def _table(title: str, columns: Mapping[str, Column], figures: Figures, sign: str = "") -> Table:
    shown = {name: of for name, of in columns.items() if any(defined(row.get(name)) for row in figures.values())}
    rows = [
        [row, *(_cell(of.get(name), column, sign) for name, column in shown.items())]
        for row, of in figures.items()
        if any(defined(of.get(name)) for name in shown)
    ]
    return Table(title, ["method", *(column.title for column in shown.values())], rows)


def _cell(figure: Figure | None, column: Column, sign: str) -> str:
    if not defined(figure):
        return "-"
    scale, digits = (100, 1) if column.percent else (1, column.digits)
    value, low, high = (f"{scale * part:{sign}.{digits}f}" for part in figure)
    return f"{value}{' %' if column.percent else ''} [{low}, {high}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
