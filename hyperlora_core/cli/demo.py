"""hyperlora demo: the main job on the shipped models, in a minute or two on a laptop."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from ..demo.portraits import HELD_OUT, Identity, Scene
from ..demo.portraits import render as draw
from ..errors import HyperLoRAError
from ..files import written_aside
from ..locate import DEMO, demo_folder, open_encoder
from ..lora import save_lora
from ..metadata import describe
from ..photo import read_photo
from ..pipeline import apply_lora, load_pipeline, remove_lora, render
from ..prompt import with_trigger
from .portrait import person_lora

PROMPT = "portrait of a person, blue background, green shirt"
COLUMNS = {"photo": None, "without": None, "ID": (0.8, 0.0), "ID and base": (0.8, 0.4)}
TILE = 256  # px, of a picture on the sheet
CAPTION = 28  # px, below it


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="photos of one person (default: three drawn people)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("outputs/demo"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--prompt", default=PROMPT, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: Namespace) -> int:
    """Run the command."""
    people = {"person": arguments.photos} if arguments.photos else _draw_people(arguments.out / "photos")
    encoder = open_encoder(DEMO)
    pipeline = load_pipeline(demo_folder())
    rows = []
    with tqdm(total=len(people) * 3 * arguments.steps, desc="painting", unit="step", disable=None) as bar:

        def paint(prompt: str) -> Image.Image:
            return render(
                pipeline,
                prompt,
                steps=arguments.steps,
                seed=arguments.seed,
                progress=lambda _done, _total: bar.update(),
            )

        for name, photos in people.items():
            encoded = encoder.encode(photos)
            folder = arguments.out / name
            encoded.identity.save(folder / "identity.safetensors")
            id_lora = encoder.hyper.lora(encoded.identity.coefficients)
            metadata = describe(name, encoded.identity)
            save_lora(id_lora, folder / "lora.safetensors", metadata=metadata, dtype=torch.float16)
            pictures = [Image.fromarray(read_photo(photos[0])), paint(arguments.prompt)]
            for weights in COLUMNS.values():
                if weights is not None:
                    apply_lora(pipeline, person_lora(encoder.hyper, encoded.identity, *weights))
                    pictures.append(paint(with_trigger(arguments.prompt)))
            remove_lora(pipeline)
            _save(pictures[-1], folder / "portrait.png")
            rows.append(pictures)
    _save(_sheet(rows), arguments.out / "sheet.png")
    for name in people:
        print(
            f"{name}: LoRA {arguments.out / name / 'lora.safetensors'}, portrait {arguments.out / name / 'portrait.png'}"
        )
    print(f"All on one sheet: {arguments.out / 'sheet.png'}")
    return 0


def _draw_people(folder: Path) -> dict[str, list[Path]]:
    """Photos of three people whom no network has seen in training."""
    people = {}
    for number in range(3):
        scene = Scene.random(np.random.default_rng(number), sketch=0, hat=0, glasses=0)
        path = folder / f"person_{number + 1}.png"
        _save(Image.fromarray(draw(Identity.from_seed(HELD_OUT[number]), scene, size=TILE).image), path)
        people[f"person_{number + 1}"] = [path]
    return people


def _save(picture: Image.Image, path: Path) -> None:
    with written_aside(path) as aside:
        picture.save(aside, format="PNG")


def _sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """The pictures as a grid, the column's name below each."""
    if any(len(row) != len(COLUMNS) for row in rows):
        raise HyperLoRAError("The sheet's columns and pictures differ in number.")
    sheet = Image.new("RGB", (TILE * len(COLUMNS), (TILE + CAPTION) * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=CAPTION * 0.6)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(zip(COLUMNS, row, strict=True)):
            corner = (x * TILE, y * (TILE + CAPTION))
            sheet.paste(ImageOps.fit(picture, (TILE, TILE), Image.Resampling.LANCZOS), corner)
            pen.text((corner[0] + TILE / 2, corner[1] + TILE + CAPTION / 2), label, "black", font, anchor="mm")
    return sheet
