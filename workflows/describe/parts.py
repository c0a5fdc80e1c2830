"""What a described workflow is made of: nodes, groups, a note."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CATALOG = json.loads((ROOT / "models" / "catalog.json").read_text(encoding="utf-8"))
# this pack's name and version; a regular expression, because tomllib is missing before Python 3.11
PACK = dict(re.findall(r'^(name|version) = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))
FIXED = "fixed"


@dataclass
class Node:
    """`values` fill widgets (the others keep their defaults); `links` name an output: input -> "node.output"."""

    kind: str
    values: dict = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    extra_height: int = 0  # px, for texts and pictures
    title: str = ""  # empty: the node's own
    mine: bool = False  # green: what the user changes from picture to picture
    models: list[str] = field(default_factory=list)  # items of the catalog that the editor offers to download
    control: str = ""  # what the editor does to a seed after a run: empty is the node's own way


@dataclass
class Group:
    title: str
    columns: list[list[str]]  # names of nodes, from left to right and from top to bottom


@dataclass
class Workflow:
    nodes: dict[str, Node]  # numbered from 1 in this order
    groups: list[Group]
    note: str


def item(name: str) -> dict:
    return next(item for item in CATALOG["items"] if item["name"] == name)


def size_of(name: str) -> str:
    """Such as "3.1 GB": all files of an item of the catalog."""
    total = 0.0
    for file in item(name)["files"]:
        number, unit = (file["size"], "B") if file["size"] else file["about"].split()
        total += float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    return f"{total / 1e9:.1f} GB" if total >= 1e8 else f"{total / 1e6:.0f} MB"


def file_name(name: str) -> str:
    """What a loader's widget shows for an item's last file: its path below the folder of its kind."""
    return item(name)["files"][-1]["path"].partition("/")[2]


def files_table(*names: str) -> str:
    rows = ["| what | size | goes to, below models/ |", "|---|---|---|"]
    for name in names:
        entry = item(name)
        paths = [file["path"] for file in entry["files"]]
        folders = {path.rpartition("/")[0] for path in paths}
        places = paths if len(folders) == len(paths) else [f"{folder}/" for folder in folders]
        rows.append(f"| [{entry['title']}]({entry['page']}) | {size_of(name)} | {', '.join(places)} |")
    return "\n".join(rows)
