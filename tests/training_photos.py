"""Drawn portraits as training photos, with all sorts of useless files among them, and short ways to prepare them."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from bad_inputs import HTML, picture
from people import photo_of, side_by_side
from PIL import Image, ImageFilter

from hyperlora_core.demo.portraits import HELD_OUT, Identity, Scene, render
from hyperlora_core.locate import demo_folder
from hyperlora_core.train import prepare
from hyperlora_core.train.photo_rules import PhotoRules

FACES = demo_folder() / "face"
CONFIG = prepare.PrepareConfig(
    PhotoRules(size=128, min_face=60, max_enlargement=2.0, max_roll=12.0), people_folders=True
)
SHARD = 60_000  # bytes: some photos each
SCENES = (3, 5, 8)  # the head is upright
# file -> the reason why it is rejected, and words of the detail
BAD = {
    "people/mia/cut.jpg": ("unreadable", "cut off"),
    "people/mia/empty.png": ("unreadable", "an empty file"),
    "people/mia/page.jpg": ("unreadable", "a web page"),
    "people/mia/text.webp": ("unreadable", "text"),
    "people/mia/heic.heic": ("unreadable", "another format"),
    "people/mia/silent.jpg": ("no caption", "--caption"),
    "people/mia/latin.jpg": ("caption unreadable", "UTF-8"),
    "people/nobody.png": ("no face", ""),
    "people/pair.jpg": ("several faces", "2 faces"),
    "people/tiny.jpg": ("photo too small", "64 x 64"),
    "people/far.png": ("face too small", "needs 60"),
    "people/tilted.jpg": ("head tilted", "at most 12"),
}


def save(photo: Image.Image, path: Path, caption: str | None = "a person") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path, quality=95)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def far_away() -> Image.Image:
    small = Image.new("RGB", (256, 256), (90, 120, 150))
    small.paste(photo_of(0).resize((70, 70)), (90, 90))
    return small


def tilted() -> Image.Image:
    scene = Scene.random(np.random.default_rng(1), sketch=0, hat=0, glasses=0)
    return Image.fromarray(render(Identity.from_seed(HELD_OUT[4]), replace(scene, roll=0.33), 256).image)


def draw_photos(folder: Path) -> None:
    """Two people with three photos each, one photo in nobody's folder, and BAD."""
    for number, name in enumerate(("anna", "ben")):
        for i, scene in enumerate(SCENES):
            save(photo_of(number, scene), folder / name / f"{i}.jpg", f"{name} in \n scene {i}\n")
    save(photo_of(2), folder / "single.png")
    mia = folder / "mia"
    save(photo_of(3), mia / "cut.jpg")
    data = (mia / "cut.jpg").read_bytes()
    (mia / "cut.jpg").write_bytes(data[: len(data) // 2])
    (mia / "empty.png").write_bytes(b"")
    (mia / "page.jpg").write_text(HTML)
    (mia / "text.webp").write_text("not a picture")
    (mia / "heic.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    save(photo_of(3), mia / "silent.jpg", None)
    save(photo_of(3), mia / "latin.jpg")
    (mia / "latin.txt").write_bytes("café".encode("latin-1"))
    (mia / "._0.jpg").write_bytes(b"what macOS leaves behind")
    (mia / "notes.md").write_text("not a photo, and not called one")
    save(picture((256, 256)).filter(ImageFilter.GaussianBlur(20)), folder / "nobody.png")
    save(side_by_side(photo_of(0, 7), photo_of(1, 7)), folder / "pair.jpg")
    save(photo_of(0).resize((64, 64)), folder / "tiny.jpg")
    save(far_away(), folder / "far.png")
    save(tilted(), folder / "tilted.jpg")


def run(photos: Path, out: Path, config: prepare.PrepareConfig = CONFIG, **options) -> prepare.Summary:
    options = {"provider": "cpu", "shard_bytes": SHARD, **options}
    return prepare.prepare_photos([photos], out, FACES, config, **options)


def report_of(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "report.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["source"] for line in lines}) == len(lines)
    return {line["source"]: line for line in lines}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
