"""What compression and kept norms do to the similarity and to the rest of the picture, on held-out people of the demo.

    python -m benchmarks.gentle --people 8 --pictures 2

Each way paints the same prompts from the same noise. Similarity: cosine to another photo of the person, by a recognition
network that steers nothing. Rest: mean difference (0 to 255) to the picture without LoRA, outside the face. The exit status
is 1 if rank 8 keeps less than 98 % of the similarity that the LoRA adds, or kept norms less than 90 %, or if these change the
rest more. A sheet is written into --out: some people, painted each way.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from hyperlora_core import merge_branches, open_encoder
from hyperlora_core.compress import compress
from hyperlora_core.evaluate.grid import Cell, draw_grid
from hyperlora_core.evaluate.instruments import MeasuringNetwork
from hyperlora_core.evaluate.people import drawn_people
from hyperlora_core.evaluate.protocol import SCENES, load_protocol
from hyperlora_core.face.analyzer import FaceAnalyzer
from hyperlora_core.face.prepare import face_box
from hyperlora_core.files import written_aside
from hyperlora_core.locate import demo_folder
from hyperlora_core.lora import LoRA, diffusers_path, pairs
from hyperlora_core.norms import column_norms, with_norms
from hyperlora_core.pipeline import load_pipeline, render
from hyperlora_core.prompt import with_trigger

ID_WEIGHT, BASE_WEIGHT = 0.8, 0.4
NONE, FULL, NORMS = "without LoRA", "rank 12, as generated", "rank 12, norms kept"
RANKS = (8, 6, 4, 2)
SHEET_PEOPLE = 4


class Way(NamedTuple):
    """How a person's joined LoRA is put on the model."""

    rank: int | None = None  # None: as it is
    keep_norms: bool = False


WAYS = {FULL: Way(), **{f"rank {rank}": Way(rank) for rank in RANKS}, NORMS: Way(keep_norms=True)}


@contextmanager
def merged(unet: torch.nn.Module, lora: LoRA, keep_norms: bool) -> Iterator[None]:
    """The LoRA in the UNet's weights while the block runs."""
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for key, down, up, scale in pairs(lora):
        weight = unet.get_submodule(diffusers_path(key, unet.config.layers_per_block)).weight.data
        original = weight.clone()
        before.append((weight, original))
        weight += (scale * up @ down).to(weight)
        if keep_norms:
            weight.copy_(with_norms(weight, column_norms(original)))
    try:
        yield
    finally:
        for weight, original in before:
            weight.copy_(original)


def outside_faces(pictures: list[np.ndarray], faces: FaceAnalyzer) -> np.ndarray:
    """Where none of the pictures shows its face: bool [h, w]."""
    height, width = pictures[0].shape[:2]
    outside = np.ones((height, width), bool)
    for picture in pictures:
        for face in faces.faces(picture)[:1]:
            x0, y0, x1, y1 = np.clip(face_box(face.landmarks), 0, (width, height) * 2).astype(int)
            outside[y0:y1, x0:x1] = False
    return outside


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=8, help="held-out people (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=2, help="of each person, at most 4 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/gentle"), metavar="FOLDER", help="the sheet (default: %(default)s)"
    )
    arguments = parser.parse_args()

    protocol = load_protocol()
    people = drawn_people(arguments.people, 1, {SCENES: protocol.prompts[SCENES]}, protocol.chances)
    encoder = open_encoder("demo")
    measuring = MeasuringNetwork(demo_folder() / "face_measure", encoder.faces)
    pipeline = load_pipeline(demo_folder())
    similarity = {name: [] for name in (NONE, *WAYS)}
    rest, lost = {name: [] for name in WAYS}, {name: [] for name in WAYS}
    rows = []

    def paint(person, number: int) -> np.ndarray:
        prompt = with_trigger(person.prompts[SCENES][number])
        options = {"steps": arguments.steps, "cfg": arguments.cfg, "seed": person.noise[number]}
        return np.asarray(render(pipeline, prompt, **options))

    def alike(picture: np.ndarray, gallery: np.ndarray) -> float:
        found = measuring.embed(picture)
        return 0.0 if found is None else float(found @ gallery)

    for person in tqdm(people, desc="people"):
        identity = encoder.encode(person.photos).identity
        lora = encoder.hyper.lora
        joined = merge_branches(
            lora(identity.coefficients), lora(identity.base_coefficients, "base"), ID_WEIGHT, BASE_WEIGHT
        )
        gallery = measuring.embed(person.gallery)
        if gallery is None:
            continue
        plain = [paint(person, number) for number in range(arguments.pictures)]
        similarity[NONE] += [alike(picture, gallery) for picture in plain]
        cells = [Cell(person.photos[0], ["photo"]), Cell(plain[0], [f"{similarity[NONE][-len(plain)]:.2f}"])]
        for name, way in WAYS.items():
            used, errors = (joined, {}) if way.rank is None else compress(joined, way.rank)
            lost[name] += list(errors.values()) or [0.0]
            with merged(pipeline.unet, used, way.keep_norms):
                painted = [paint(person, number) for number in range(arguments.pictures)]
            similarity[name] += [alike(picture, gallery) for picture in painted]
            cells.append(Cell(painted[0], [f"{similarity[name][-len(painted)]:.2f}"]))
            for before, after in zip(plain, painted, strict=True):
                where = outside_faces([before, after], encoder.faces)
                if where.any():
                    rest[name].append(np.abs(after.astype(float) - before)[where].mean())
        rows.append(("", cells))

    means = {name: float(np.mean(values)) for name, values in similarity.items()}
    print("| way | similarity (cosine) | rest changes by | of a layer's change lost |\n|---|---|---|---|")
    print(f"| {NONE} | {means[NONE]:.3f} | 0 | - |")
    for name in WAYS:
        spread = np.std(similarity[name]) / len(similarity[name]) ** 0.5
        print(
            f"| {name} | {means[name]:.3f} +- {spread:.3f} | {np.mean(rest[name]):.2f} | {np.mean(lost[name]):.1%}, "
            f"at most {np.max(lost[name]):.1%} |"
        )
    with written_aside(arguments.out / "gentle.png") as aside:
        draw_grid(["photo", NONE, *WAYS], rows[:SHEET_PEOPLE]).save(aside, format="PNG")
    gained = {name: means[name] - means[NONE] for name in WAYS}
    fine = gained["rank 8"] >= 0.98 * gained[FULL] and gained[NORMS] >= 0.9 * gained[FULL]
    return 0 if fine and np.mean(rest[NORMS]) <= np.mean(rest[FULL]) else 1


if __name__ == "__main__":
    sys.exit(main())
