"""What the controls of the graph do to similarity and composition, measured on the demo models in a real ComfyUI.

    python -m benchmarks.controls regions            people side by side, with and without masks
    python -m benchmarks.controls schedule           start and end, merged and bypassed
    python -m benchmarks.controls blocks             block weights and their presets

Each prints a table, writes it and the pictures to --out, and ends with 1 where a figure misses its threshold. ComfyUI is
found as the tests find it (COMFYUI_PATH, or comfy-cli's).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from hyperlora_core.block_weights import PRESETS
from hyperlora_core.evaluate.instruments import MeasuringNetwork
from hyperlora_core.evaluate.people import Person, drawn_people
from hyperlora_core.evaluate.protocol import load_protocol
from hyperlora_core.locate import DEMO, demo_folder, open_encoder

from .server import SIDE, ComfyUI, column, crowd, demo, own_server

OWN_LEAST = 0.8  # of the pictures, in which a person resembles the own photo most
LAYOUT_GRID = 16  # cells per side: what is where and in which colour, not what it looks like in detail
PICTURES_AT_ONCE = 5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["regions", "schedule", "blocks"])
    parser.add_argument("--host", type=Path, help="ComfyUI's folder (default: the first that the tests find)")
    parser.add_argument("--out", type=Path, default=Path("outputs/controls"), help="default: %(default)s")
    parser.add_argument("--people", type=int, nargs="+", help="regions: per picture (2 3); else: how many (12)")
    parser.add_argument(
        "--pictures", type=int, help="regions: for each number of people (50); else: of each person (5)"
    )
    parser.add_argument("--steps", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--cfg", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--weight", type=float, default=0.8, help="of the ID LoRA (default: %(default)s)")
    parser.add_argument(
        "--base-weight", type=float, default=0.0, help="regions: of the Base-LoRA (default: %(default)s)"
    )
    parser.add_argument("--guide", action="store_true", help="regions, blocks: nobody in the negative prompt")
    parser.add_argument("--start", type=float, default=0.0, help="regions: start of each person (default: %(default)s)")
    parser.add_argument(
        "--area",
        default="default",
        choices=["default", "mask bounds"],
        help="regions: set_cond_area (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of people and noise (default: %(default)s)")
    return parser.parse_args()


class Crowd:
    """Held-out people whose photos show a face, known to the server and to the measuring network."""

    def __init__(self, server: ComfyUI, count: int, seed: int):
        self.network = MeasuringNetwork(demo_folder() / "face_measure", open_encoder(DEMO).faces)
        protocol = load_protocol()
        drawn = drawn_people(count, 1, protocol.prompts, protocol.chances, seed)
        galleries = self.network.embed_all([person.gallery for person in drawn])
        known = galleries.any(1) & self.network.embed_all([person.photos[0] for person in drawn]).any(1)
        self.people: list[Person] = [person for person, there in zip(drawn, known, strict=True) if there]
        self.galleries = galleries[known]  # (people, c)
        self.photos = [server.upload(Image.fromarray(p.photos[0]), f"person_{p.name}.png") for p in self.people]


def painted(server: ComfyUI, graph: dict) -> list[np.ndarray]:
    result = server.run(graph)
    if result.error:
        raise SystemExit(result.error)
    return result.pictures()


def regions(server: ComfyUI, options: argparse.Namespace) -> tuple[dict, bool]:
    """In how many pictures each person, and all of them, resemble the own photo more than those of the others there."""
    pictures, figures, passed = options.pictures or 50, {}, True
    rng = np.random.default_rng(options.seed)
    for count in options.people or [2, 3]:
        crowd_of = Crowd(server, max(12, 2 * count), options.seed)
        masks = [server.upload(column(n, count).convert("RGB"), f"mask_{n}_of_{count}.png") for n in range(count)]
        groups = [
            rng.permutation(len(crowd_of.people))[:count] for _ in range(-(-pictures // PICTURES_AT_ONCE))
        ]  # people side by side
        for name, places in (("masks", masks), ("no masks", None)):
            right, own, sheet = [], [], []
            region = {
                "weight": options.weight,
                "base_weight": options.base_weight,
                "start": options.start,
                "guide": options.guide,
            }
            if places:
                region["set_cond_area"] = options.area
            for number, group in enumerate(tqdm(groups, desc=f"{count} people, {name}")):
                graph = crowd(
                    [crowd_of.photos[i] for i in group],
                    places,
                    [crowd_of.people[i].prompts["scenes"][0] for i in group],
                    [region] * count,
                    batch=min(PICTURES_AT_ONCE, pictures - number * PICTURES_AT_ONCE),
                    seed=options.seed + number,
                    steps=options.steps,
                    cfg=options.cfg,
                )
                for picture in painted(server, graph):
                    columns = [picture[:, SIDE * n : SIDE * (n + 1)] for n in range(count)]
                    # (column, c) x (c, person) -> (column, person); a column without a face has zeros: never the largest
                    alike = crowd_of.network.embed_all(columns) @ crowd_of.galleries[group].T
                    others = np.where(np.eye(count, dtype=bool), -np.inf, alike).max(1)
                    right.append(np.diag(alike) > others)
                    own.append(np.diag(alike))
                photos = np.concatenate([np.asarray(resized(crowd_of.people[i].photos[0])) for i in group], 1)
                sheet.append(np.concatenate([photos, picture], 1))
            save(options.out / f"regions_{count}_{name.replace(' ', '_')}.png", sheet)
            figures[f"{count} people, {name}"] = {
                "pictures": len(right),
                "all right": float(np.all(right, 1).mean()),
                "people right": float(np.mean(right)),
                "the worst place's right": float(np.mean(right, 0).min()),
                "cosine to own photo": float(np.mean(own)),
            }
        with_masks, without = (figures[f"{count} people, {name}"] for name in ("masks", "no masks"))
        passed = passed and with_masks["the worst place's right"] >= OWN_LEAST
        passed = passed and without["all right"] < with_masks["all right"]
    return figures, passed


def compared(server: ComfyUI, options: argparse.Namespace, settings: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """Similarity, and distance from the picture without the person, for inputs of Apply HyperLoRA by name."""
    crowd_of = Crowd(server, (options.people or [12])[0], options.seed)
    figures, sheets = {}, []
    mode = "guide" if options.guide else "merge"
    for name, apply in tqdm({"without": {"weight": 0.0}, **settings}.items(), desc="settings"):
        alike, layout, row = [], [], []
        for number, person in enumerate(crowd_of.people):
            graph = demo(
                crowd_of.photos[number],
                HyperLoRAApply={"weight": options.weight, "base_weight": 0.0, "mode": mode} | apply,
                KSampler={"seed": options.seed + number, "steps": options.steps, "cfg": options.cfg},
                EmptyLatentImage={"batch_size": options.pictures or PICTURES_AT_ONCE},
                HyperLoRATriggerPrompt={"prompt": person.prompts["scenes"][0]},
            )
            pictures = painted(server, graph)
            if name == "without":
                sheets.append(pictures)
            alike.append(crowd_of.network.embed_all(pictures) @ crowd_of.galleries[number])
            layout.append([layout_distance(*pair) for pair in zip(pictures, sheets[number], strict=True)])
            row.append(pictures[0])
        figures[name] = {"cosine to own photo": float(np.mean(alike)), "layout distance": float(np.mean(layout))}
        save(options.out / f"{options.what}_{name.replace(' ', '_')}.png", [np.concatenate(row, 1)])
    return figures


def layout_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two pictures' cells, 0 to 1."""
    cell = SIDE // LAYOUT_GRID
    cells = [picture.reshape(LAYOUT_GRID, cell, LAYOUT_GRID, cell, 3).mean((1, 3)) / 255 for picture in (one, other)]
    return float(np.abs(cells[0] - cells[1]).mean())


def schedule(server: ComfyUI, options: argparse.Namespace) -> tuple[dict, bool]:
    """The later the start, the nearer to the picture without the person; the similarity falls, but not at once.

    Until start 0.3 most of it is kept; later it falls with every step.
    """
    starts = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
    settings = {f"{mode}, start {start}": {"mode": mode, "start": start} for mode in MODES for start in starts}
    settings |= {f"{mode}, end 0.7": {"mode": mode, "end": 0.7} for mode in MODES}
    figures = compared(server, options, settings)
    passed = True
    for mode in MODES:
        rows = {start: figures[f"{mode}, start {start}"] for start in starts}
        layout = [row["layout distance"] for row in rows.values()]
        alike = {start: row["cosine to own photo"] for start, row in rows.items()}
        late = [value for start, value in alike.items() if start >= SETTLED]
        passed = passed and all(values == sorted(values, reverse=True) for values in (layout, late))
        passed = passed and alike[SETTLED] >= LEFT * alike[0.0]
    return figures, passed


MODES = ("merge", "bypass")
SETTLED, LEFT = 0.3, 0.8  # start at which the picture is composed, and what is left of the similarity then


def blocks(server: ComfyUI, options: argparse.Namespace) -> tuple[dict, bool]:
    """Presets keep most of the similarity and come nearer to the picture without the person; what each side is for."""
    sides = {f"without {side}": {"block_weights": f"{side} 0"} for side in ("down", "middle", "up")}
    figures = compared(server, options, {name: {"blocks": name} for name in PRESETS} | sides)
    alike, without = figures["all alike"], figures["without"]
    gained = alike["cosine to own photo"] - without["cosine to own photo"]
    passed = all(
        figures[name]["layout distance"] <= alike["layout distance"]
        and figures[name]["cosine to own photo"] - without["cosine to own photo"] >= 0.6 * gained
        for name in PRESETS
    )
    return figures, passed


def resized(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def save(path: Path, rows: Sequence[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> int:
    options = parse()
    with own_server(options.host) as server:
        figures, passed = {"regions": regions, "schedule": schedule, "blocks": blocks}[options.what](server, options)
    columns = list(next(iter(figures.values())))
    lines = [f"| {options.what} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[c]:.3g}' for c in columns)} |" for name, row in figures.items()]
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "host")}
    (options.out / f"{options.what}.json").write_text(json.dumps({"settings": settings, "figures": figures}, indent=2))
    print("within the thresholds" if passed else "A figure misses its threshold.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
