"""An evaluation's results as files: results.json, results.csv, table.md, report.html and grids of pictures."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import written_aside
from ..photo import read_photo
from .figures import Figure, Measured, difference, estimate
from .grid import Cell, draw_grid, scored
from .measures import measured
from .page import page
from .protocol import NONE, SCENES
from .run import TRUTH, Results
from .tables import COMPARED, defined, figure_tables, paper_tables, speed_table

GRID_PEOPLE = 8  # rows of a grid
MOST_GRIDS = 10


def write_report(
    out: Path, results: Results, comparisons: Sequence[tuple[str, str]], settings: Mapping[str, Any], seed: int = 0
) -> str:
    """Write all files into `out`; returns the tables in Markdown. `seed`: of the bootstrap."""
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
    head = _head(results, settings)
    tables, speeds = figure_tables(figures, compared), speed_table(results.speeds)
    tables += [speeds] if speeds else []
    theirs = paper_tables(with_speeds=speeds is not None)
    left_out = [f"Left out: {line}" for line in results.left_out]
    markdown = "\n\n".join(
        [
            head,
            "\n".join(f"- {line}" for line in [*results.notes, *left_out]),
            *(table.markdown() for table in [*tables, *theirs]),
        ]
    )
    _write(out / "table.md", markdown + "\n")
    _write(out / "results.csv", _csv(results))
    document = {
        "settings": dict(settings),
        "measured with": results.notes,
        "people": len(results.people),
        "left out": results.left_out,
        "figures": {row: {name: _plain(of) for name, of in named.items()} for row, named in figures.items()},
        "differences": [
            {"of": one, "to": other, **{name: _plain(of) for name, of in named.items()}}
            for (one, other), named in compared.items()
        ],
        "seconds": {row: {"preprocessing": part[:, 0].tolist(), "inference": part[:, 1].tolist()}
                    for row, part in results.speeds.items()},
    }  # fmt: skip
    _write(out / "results.json", json.dumps(document, indent=2))
    grids = _save_grids(out, results)
    _write(out / "report.html", page(head, [*results.notes, *left_out], tables, theirs, figures, grids))
    return markdown + "\n"


def _measured_rows(results: Results) -> dict[str, dict[str, Measured]]:
    none, truth = results.scores.get(NONE), results.scores.get(TRUTH)
    return {
        row: measured(
            scores,
            none,
            truth,
            edits=row in results.methods and results.methods[row].prompts == SCENES,
            kinds=results.kinds,
        )
        for row, scores in results.scores.items()
    }


def _head(results: Results, settings: Mapping[str, Any]) -> str:
    made = [
        f"{len(results.people)} people",
        f"{len(next(iter(results.scores.values()))[0])} pictures each",
        *(f"{name} {settings[name]}" for name in ("seed", "seeds", "steps", "cfg", "batch") if name in settings),
    ]
    return f"{', '.join(made)}; in brackets the 95 % interval over people."


def _plain(figure: Figure) -> dict[str, float] | None:
    return figure._asdict() if defined(figure) else None


def _save_grids(out: Path, results: Results) -> dict[str, str]:
    """A grid for each picture of a person, or some of them: a row per person, a column per method. File -> title."""
    scenes = {
        row: scores
        for row, scores in results.scores.items()
        if row in results.true or results.methods[row].prompts == SCENES
    } or results.scores
    others = {row: scores for row, scores in results.scores.items() if row not in scenes}
    count, grids = len(next(iter(scenes.values()))[0]), {}
    for number in range(0, count, -(-count // MOST_GRIDS)):
        shown = scenes | {row: scores for row, scores in others.items() if number < len(scores[0])}
        rows = []
        for i, person in enumerate(results.people[:GRID_PEOPLE]):
            cells = [Cell(read_photo(person.photos[0]), [f"person {person.name}"])]
            for row, scores in shown.items():
                score = scores[i][number]
                cosine = score.cosine if score.found else None
                cells.append(scored(results.picture(row, i, number), cosine, score.rank, len(results.people)))
            rows.append((next(iter(scenes.values()))[i][number].prompt, cells))
        file = f"grid_{len(grids) + 1}.png"
        with written_aside(out / file) as aside:
            draw_grid(["photo", *shown], rows).save(aside, format="PNG")
        grids[file] = f"Picture {results.people[0].tags[number]}"
    return grids


# results.csv: head -> the cell of a picture
CSV = {
    "prompt": lambda score: score.prompt,
    "face": lambda score: int(score.found),
    "cosine": lambda score: f"{score.cosine:.4f}",
    "rank": lambda score: score.rank,
    "id_sim": lambda score: f"{score.id_sim:.4f}",
    "face_fidelity": lambda score: f"{score.fidelity:.4f}",
    "copy_paste": lambda score: f"{score.copied:.4f}",
    "clip_i": lambda score: f"{score.clip_i:.4f}",
    "clip_t": lambda score: f"{score.clip_t:.4f}",
    "sharpness": lambda score: f"{score.sharpness:.1f}",
    "right": lambda score: _named(score.right, True),
    "wrong": lambda score: _named(score.right, False),
    "carried": lambda score: _named(score.carried, True),
}


def _csv(results: Results) -> str:
    """A line per picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "person", "picture", *CSV])
    for row, people in results.scores.items():
        for person, scores in zip(results.people, people, strict=True):
            for tag, score in zip(person.tags, scores, strict=False):
                writer.writerow([row, person.name, tag, *(cell(score) for cell in CSV.values())])
    return text.getvalue()


def _named(hits: Mapping[str, bool], wanted: bool) -> str:
    return " ".join(name for name, hit in hits.items() if hit == wanted)


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
