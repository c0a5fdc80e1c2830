"""An evaluation's results as files: results.json, results.csv, table.md and grids of pictures."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import written_aside
from .figures import Figure, Measured, difference, estimate
from .grid import Cell, draw_grid, scored
from .measures import measured
from .protocol import NONE, SCENES
from .run import TRUTH, Results


class Column(NamedTuple):
    """A measure in the table."""

    title: str
    percent: bool


COLUMNS = {
    "retrieval": Column("right person found (rank 1)", True),
    "similarity": Column("likeness, 0 none to 1 true", False),
    "editability": Column("edits kept", True),
    "prompt": Column("prompt shown", True),
    "carried": Column("clothes and background of the photo", True),
    "copy-paste": Column("copy-paste", False),
    "CLIP-I": Column("CLIP-I to none", False),
    "cosine": Column("cosine", False),
    "faces": Column("faces found", True),
}
GRID_PEOPLE = 8  # rows of a grid
COMPARED = ("retrieval", "similarity", "editability", "carried")

Figures = dict[str, dict[str, Figure]]  # row -> measure -> figure


def write_report(
    out: Path, results: Results, comparisons: Sequence[tuple[str, str]], settings: Mapping[str, Any], seed: int = 0
) -> str:
    """Write all files into `out`; returns the table. `seed`: of the bootstrap."""
    rows = _measured_rows(results)
    figures = {row: {name: estimate(of, seed) for name, of in measures.items()} for row, measures in rows.items()}
    compared = {
        (one, other): {
            name: difference(rows[one][name], rows[other][name], seed)
            for name in COMPARED
            if name in rows[one] and name in rows[other]
        }
        for one, other in comparisons
        if one in rows and other in rows
    }
    table = _table(results, figures, compared, settings)
    _write(out / "table.md", table)
    _write(out / "results.csv", _csv(results))
    document = {
        "settings": dict(settings),
        "people": len(results.people),
        "left out": results.left_out,
        "figures": {row: {name: _plain(of) for name, of in named.items()} for row, named in figures.items()},
        "differences": [
            {"of": one, "to": other, **{name: _plain(of) for name, of in named.items()}}
            for (one, other), named in compared.items()
        ],
    }
    _write(out / "results.json", json.dumps(document, indent=2))
    _save_grids(out, results)
    return table


def _measured_rows(results: Results) -> dict[str, dict[str, Measured]]:
    none, truth = results.scores[NONE], results.scores[TRUTH]
    return {
        row: measured(
            scores, none, truth, edits=row in results.methods and results.methods[row].prompts == SCENES
        )
        for row, scores in results.scores.items()
    }  # fmt: skip


def _table(
    results: Results,
    figures: Figures,
    compared: dict[tuple[str, str], dict[str, Figure]],
    settings: Mapping[str, Any],
) -> str:
    shown = [name for name in COLUMNS if any(_defined(of.get(name)) for of in figures.values())]
    made = [
        f"{len(results.people)} people",
        f"{len(results.scores[NONE][0])} pictures each",
        *(f"{name} {settings[name]}" for name in ("seed", "steps", "cfg") if name in settings),
    ]
    lines = [
        f"{', '.join(made)}; in brackets the 95 % interval over people.",
        "",
        f"| method | {' | '.join(COLUMNS[name].title for name in shown)} |",
        "|---" * (len(shown) + 1) + "|",
        *(f"| {row} | {' | '.join(_cell(of.get(name), name) for name in shown)} |" for row, of in figures.items()),
    ]
    edits = sorted({name for of in figures.values() for name in of if name.startswith("editability, ")})
    if edits:
        heads = " | ".join(name.partition(", ")[2].replace("_", " ") for name in edits)
        lines += ["", "Edits kept, by what the prompt asks for:", "", f"| method | {heads} |"]
        lines += ["|---" * (len(edits) + 1) + "|"]
        lines += [
            f"| {row} | {' | '.join(_cell(of[name], 'editability') for name in edits)} |"
            for row, of in figures.items()
            if edits[0] in of
        ]
    if compared:
        lines += ["", "Differences, person by person:", ""]
        lines += [f"| | {' | '.join(COLUMNS[name].title for name in COMPARED)} |", "|---" * (len(COMPARED) + 1) + "|"]
        lines += [
            f"| {one} minus {other} | {' | '.join(_cell(of.get(name), name, '+') for name in COMPARED)} |"
            for (one, other), of in compared.items()
        ]
    if results.left_out:
        lines += ["", "Left out:", "", *(f"- {line}" for line in results.left_out)]
    return "\n".join(lines) + "\n"


def _cell(figure: Figure | None, name: str, sign: str = "") -> str:
    if not _defined(figure):
        return "-"
    scale, digits = (100, 1) if COLUMNS[name].percent else (1, 3)
    value, low, high = (f"{scale * part:{sign}.{digits}f}" for part in figure)
    return f"{value}{' %' if COLUMNS[name].percent else ''} [{low}, {high}]"


def _defined(figure: Figure | None) -> bool:
    return figure is not None and math.isfinite(figure.value)


def _plain(figure: Figure) -> dict[str, float] | None:
    return figure._asdict() if _defined(figure) else None


def _save_grids(out: Path, results: Results) -> None:
    """grid_1.png, ...: one for each picture of a person, a row per person, a column per method."""
    for number, truth in enumerate(zip(*results.scores[TRUTH], strict=True)):
        rows = []
        for i, person in enumerate(results.people[:GRID_PEOPLE]):
            at = i * len(results.scores[TRUTH][i]) + number
            pictures = {name: true[at] for name, true in results.true.items()}
            pictures |= {name: store.load(person.name, number) for name, store in results.stores.items()}
            cells = [Cell(person.photos[0], [f"person {person.name}"])]
            for name, picture in pictures.items():
                score = results.scores[name][i][number]
                cosine = score.cosine if score.found else None
                cells.append(scored(picture, cosine, score.rank, len(results.people)))
            rows.append((truth[i].prompt, cells))
        grid = draw_grid(["photo", *results.true, *results.stores], rows)
        with written_aside(out / f"grid_{number + 1}.png") as aside:
            grid.save(aside, format="PNG")


def _csv(results: Results) -> str:
    """A line per picture."""
    text = io.StringIO()
    head = ["method", "person", "picture", "prompt", "face", "cosine", "rank", "copy_paste", "clip_i", "right", "wrong",
            "carried"]  # fmt: skip
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row, scores in results.scores.items():
        for person, pictures in zip(results.people, scores, strict=True):
            for picture, score in enumerate(pictures):
                writer.writerow(
                    [
                        row,
                        person.name,
                        picture,
                        score.prompt,
                        int(score.found),
                        f"{score.cosine:.4f}",
                        score.rank,
                        f"{score.copied:.4f}",
                        f"{score.clip_i:.4f}",
                        " ".join(name for name, hit in score.right.items() if hit),
                        " ".join(name for name, hit in score.right.items() if not hit),
                        " ".join(name for name, hit in score.carried.items() if hit),
                    ]
                )
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
