"""The rows as a table, as JSON and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hyperlora_core.files import written_aside
from hyperlora_core.packages import require

from .bench import Bench, Row

COLUMNS = ("what", "figure", "floor", "ratio", "budget")


def table(bench: Bench) -> str:
    """Markdown, a table with all groups."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    group = None
    for row in bench.rows:
        if row.group != group:
            group = row.group
            lines.append((f"**{group}**", "", "", "", ""))
        lines.append((row.name, figure(row.value, row.unit), _floor(row), _ratio(row), _budget(row)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(_line(line, widths) for line in lines)


def ceilings(bench: Bench) -> str:
    """One line each."""
    rates = bench.ceilings
    lines = [
        f"copying {rates.copying / 1e9:.1f} GB/s (read and written), reading {rates.reading / 1e9:.1f} GB/s",
        *(f"multiplying {name}: {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.multiplying.items()),
    ]
    if rates.uploading is not None:
        lines.append(f"from main memory to the device {rates.uploading / 1e9:.1f} GB/s")
    return "\n".join(lines)


def figure(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"
    if unit == "GB":
        return f"{value:.2f} GB" if value >= 0.1 else f"{1e3 * value:.3g} MB"
    return f"{value:.0f}" if unit == "patches" else f"{value:.2f} {unit}"


def write_json(bench: Bench, machine: dict[str, object], path: Path) -> None:
    content = {
        "machine": machine,
        "shape": "published" if bench.published else "demo",
        "repetitions": bench.repetitions,
        "ceilings": asdict(bench.ceilings) | {"memory": bench.ceilings.memory},
        "rows": [row.as_json() for row in bench.rows],
    }
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw(bench: Bench, title: str, path: Path) -> None:
    """Seconds and their floors, a bar each, in the table's order."""
    figures = require("matplotlib.figure", "Drawing the benchmark")
    rows: Sequence[Row] = [row for row in bench.rows if row.unit == "s"]
    chart = figures.Figure(figsize=(10, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = chart.subplots()
    places = range(len(rows))[::-1]
    axes.barh(places, [row.value for row in rows], color="tab:blue", height=0.6, label="measured")
    floors = [(place, row.floor) for place, row in zip(places, rows, strict=True) if row.floor]
    axes.scatter([floor for _, floor in floors], [place for place, _ in floors], color="black", marker="|", s=120,
                 zorder=3, label="floor")  # fmt: skip
    for place, row in zip(places, rows, strict=True):
        axes.annotate(f" {figure(row.value, 's')} {_ratio(row)}", (row.value, place), va="center", fontsize=8)
    axes.set_yticks(list(places), [f"{row.group}: {row.name}" for row in rows], fontsize=8)
    axes.set(xscale="log", xlabel="seconds", title=title)
    axes.margins(x=0.2)
    chart.legend(loc="outside lower right", ncols=2)
    axes.grid(axis="x", alpha=0.3)
    with written_aside(path) as aside:
        chart.savefig(aside, format="png", dpi=110)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    filled = [
        cell.ljust(width, "-" if cell.startswith("---") else " ") for cell, width in zip(cells, widths, strict=True)
    ]
    return f"| {' | '.join(filled)} |"


def _floor(row: Row) -> str:
    return "" if row.floor is None else figure(row.floor, row.unit)


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.2f} x"


def _budget(row: Row) -> str:
    if row.budget is None:
        return ""
    limit = str(row.budget) if row.budget.of_floor else figure(row.budget.most, row.unit)
    return f"{limit}: {'kept' if row.kept else 'MISSED'}"
