"""hyperlora demo: the main job on the shipped models, in a minute or two on a laptop."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..demo.portraits import HELD_OUT, Identity, Scene
from ..demo.portraits import render as draw
from ..evaluate.grid import Cell, draw_grid, scored
from ..evaluate.instruments import FACE_MEASURE, MeasuringNetwork
from ..files import written_aside
from ..locate import DEMO, demo_folder, open_encoder
from ..lora import save_lora
from ..metadata import describe
from ..photo import read_photo
from ..pipeline import ADAPTER, apply_lora, load_pipeline, remove_lora, render
from ..prompt import with_trigger
from .portrait import person_lora

PROMPT = "portrait of a person, green background, white shirt"
WEIGHTS = {"without": None, "ID": (0.8, 0.0), "full": (0.8, 0.4)}  # column: weights of ID and base LoRA
TILE = 256  # px, of a picture on the sheet
PEOPLE = 3  # drawn when no photo is given
AMONG = 100  # people among whom a portrait's nearest is looked for


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="photos of one person (default: three drawn people)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("outputs/demo"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=2, help="of the noise (default: %(default)s)")


def run(arguments: Namespace) -> int:
    """Run the command."""
    people = {"person": arguments.photos} if arguments.photos else _draw_people(arguments.out / "photos")
    encoder = open_encoder(DEMO)
    pipeline = load_pipeline(demo_folder())
    similarity = _Similarity(MeasuringNetwork(demo_folder() / FACE_MEASURE, encoder.faces), people)
    rows = []
    with tqdm(total=len(people) * len(WEIGHTS) * arguments.steps, desc="painting", unit="step", disable=None) as bar:

        def paint(prompt: str, guide: tuple[str, ...]) -> Image.Image:
            return render(
                pipeline,
                prompt,
                steps=arguments.steps,
                seed=arguments.seed,
                guide=guide,
                progress=lambda _done, _total: bar.update(),
            )

        for name, photos in people.items():
            encoded = encoder.encode(photos)
            folder = arguments.out / name
            encoded.identity.save(folder / "identity.safetensors")
            id_lora = encoder.hyper.lora(encoded.identity.coefficients)
            metadata = describe(name, encoded.identity)
            save_lora(id_lora, folder / "lora.safetensors", metadata=metadata, dtype=torch.float16)
            cells = [Cell(read_photo(photos[0]), [""])]
            for weights in WEIGHTS.values():
                if weights is None:
                    picture = paint(arguments.prompt, ())
                else:
                    apply_lora(pipeline, person_lora(encoder.hyper, encoded.identity, *weights))
                    picture = paint(with_trigger(arguments.prompt), (ADAPTER,))
                cells.append(similarity.cell(np.asarray(picture), name))
            remove_lora(pipeline)
            _save(picture, folder / "portrait.png")
            rows.append((name.replace("_", " "), cells))
    _save(draw_grid(["photo", *WEIGHTS], rows, TILE), arguments.out / "sheet.png")
    for name, (_, cells) in zip(people, rows, strict=True):
        folder = arguments.out / name
        print(f"{name}: LoRA {folder / 'lora.safetensors'}, portrait {folder / 'portrait.png'} ({cells[-1].lines[0]})")
    print(f"All on one sheet: {arguments.out / 'sheet.png'}")
    return 0


class _Similarity:
    """Whom a portrait is like: the people whose photos were given, and drawn others that make them up to a hundred."""

    def __init__(self, faces: MeasuringNetwork, people: dict[str, list[Path]]):
        self.faces, self.names = faces, list(people)
        drawn = range(PEOPLE, PEOPLE + AMONG - len(people))
        photos = [read_photo(paths[0]) for paths in people.values()]
        with tqdm(total=AMONG, desc="looking at 100 people", unit="person", disable=None) as bar:
            self.gallery = faces.embed_all(
                [*photos, *map(_drawn, drawn)], lambda done, _total: bar.update(done - bar.n)
            )

    def cell(self, picture: np.ndarray, name: str) -> Cell:
        """The picture with its similarity to the person of this name."""
        embedding, own = self.faces.embed(picture), self.names.index(name)
        if embedding is None:
            return scored(picture, None, AMONG, AMONG)
        alike = self.gallery @ embedding  # (people)
        return scored(picture, float(alike[own]), int((alike >= alike[own]).sum()), AMONG)


def _draw_people(folder: Path) -> dict[str, list[Path]]:
    """Photos of people whom no network has seen in training."""
    people = {}
    for number in range(PEOPLE):
        path = folder / f"person_{number + 1}.png"
        _save(Image.fromarray(_drawn(number, TILE)), path)
        people[f"person_{number + 1}"] = [path]
    return people


def _drawn(number: int, size: int = 128) -> np.ndarray:
    """A photo of the held-out person `number`, without hat or glasses."""
    scene = Scene.random(np.random.default_rng(number), sketch=0, hat=0, glasses=0)
    return draw(Identity.from_seed(HELD_OUT[number]), scene, size).image


def _save(picture: Image.Image, path: Path) -> None:
    with written_aside(path) as aside:
        picture.save(aside, format="PNG")
