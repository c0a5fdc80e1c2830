"""Draws the template browser's thumbnails: what each workflow takes and what it makes, with the demo's drawn people.

    python -m workflows.thumbnails

They are signs, not results: no method painted them.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hyperlora_core.demo.portraits import Identity, Scene, render

FOLDER = Path(__file__).resolve().parent
SIDE = 480  # px
NIGHT, LINE, INK = (32, 34, 40), (90, 110, 140), (225, 228, 235)
ANNA, BEN = Identity.from_seed(7), Identity.from_seed(28)
PHOTO = Scene(background="gray", shirt="white", scale=0.34)
FOREST = Scene(background="green", background_kind="dotted", shirt="orange", hat="brown")
GARDEN = Scene(background="yellow", background_kind="dotted", shirt="orange", light="left")


def person(side: int, who: Identity = ANNA, scene: Scene = PHOTO) -> Image.Image:
    return Image.fromarray(render(who, scene, side).image)


class Sheet:
    """A thumbnail in the making."""

    def __init__(self):
        self.picture = Image.new("RGB", (SIDE, SIDE), NIGHT)
        self.pen = ImageDraw.Draw(self.picture)

    def put(self, tile: Image.Image, x: int, y: int) -> None:
        self.picture.paste(tile, (x, y))
        self.frame(x, y, *tile.size)

    def frame(self, x: int, y: int, width: int, height: int, colour: tuple[int, int, int] = LINE) -> None:
        self.pen.rectangle([x, y, x + width - 1, y + height - 1], outline=colour, width=3)

    def arrow(self, x: int, y: int, length: int = 34) -> None:
        self.pen.line([x, y, x + length, y], fill=INK, width=6)
        self.pen.polygon([(x + length, y - 12), (x + length + 16, y), (x + length, y + 12)], fill=INK)

    def word(self, text: str, x: int, y: int, size: int = 26) -> None:
        """Centred at x, y."""
        self.pen.text((x, y), text, font=ImageFont.load_default(size=size), fill=INK, anchor="mm")

    def plus(self, x: int, y: int) -> None:
        self.word("+", x, y, 40)


def from_photos(*scenes: Scene) -> Image.Image:
    sheet = Sheet()
    side = 140 if len(scenes) == 1 else 96
    top = (SIDE - len(scenes) * (side + 12) + 12) // 2
    for number, scene in enumerate(scenes):
        sheet.put(person(side, scene=scene), 24, top + number * (side + 12))
    sheet.arrow(40 + side, SIDE // 2)
    room = SIDE - side - 140
    sheet.put(person(room, scene=FOREST), SIDE - room - 24, (SIDE - room) // 2)
    return sheet.picture


def two_people() -> Image.Image:
    sheet = Sheet()
    party = Scene(background="purple", background_kind="dotted", shirt="red", scale=0.27, smiling=True, variation=5)
    sheet.put(person(120), 84, 24)
    sheet.put(person(120, BEN), 276, 24)
    both = Image.new("RGB", (432, 280))
    for x, who, shirt in ((0, ANNA, "red"), (216, BEN, "black")):
        both.paste(person(280, who, replace(party, shirt=shirt)).crop((32, 0, 248, 280)), (x, 0))
    sheet.put(both, 24, 176)
    return sheet.picture


def skeleton(side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(picture)
    joints = {
        "head": (50, 18),
        "neck": (50, 32),
        "left": (22, 22),
        "right": (80, 48),
        "hip": (52, 60),
        "a": (34, 92),
        "b": (72, 90),
    }
    place = {name: (x * side / 100, y * side / 100) for name, (x, y) in joints.items()}
    bones = [("head", "neck", "red"), ("neck", "left", "orange"), ("neck", "right", "lime"), ("neck", "hip", "cyan"),
             ("hip", "a", "blue"), ("hip", "b", "magenta")]  # fmt: skip
    for start, end, colour in bones:
        pen.line([place[start], place[end]], fill=colour, width=side // 22)
    for x, y in place.values():
        pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill="white")
    return picture


def key_points(side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(picture)
    turned = render(BEN, replace(PHOTO, turn=0.3, roll=0.2), side).keypoints
    for (x, y), colour in zip(turned, ("red", "lime", "blue", "yellow", "magenta"), strict=True):
        pen.ellipse([x - 7, y - 7, x + 7, y + 7], fill=colour)
    return picture


def guided(guide: Callable[[int], Image.Image], made: Callable[[int], Image.Image]) -> Image.Image:
    """A photo and a guide make a picture."""
    sheet = Sheet()
    sheet.put(person(150), 24, 74)
    sheet.plus(99, 240)
    sheet.put(guide(150), 24, 256)
    sheet.arrow(184, 240)
    sheet.put(made(216), 248, 132)
    return sheet.picture


def detailer(word: str = "") -> Image.Image:
    sheet = Sheet()
    beach = Scene(background="orange", shirt="white", scale=0.1, centre=(0.5, 0.3), smiling=True)
    small = person(200, scene=beach).resize((50, 50)).resize((200, 200), Image.Resampling.NEAREST)
    sheet.put(small, 24, 140)
    sheet.frame(84, 160, 80, 80, INK)
    sheet.arrow(230, 240, 8)
    sheet.put(person(200, scene=replace(PHOTO, background="orange", smiling=True, scale=0.38)), 260, 140)
    sheet.word(word, SIDE // 2, 420)
    return sheet.picture


def change_face() -> Image.Image:
    sheet = Sheet()
    party = Scene(background="blue", background_kind="striped", shirt="red", hat="yellow")
    sheet.put(person(150, BEN, party), 24, 74)
    sheet.plus(99, 240)
    sheet.put(person(150), 24, 256)
    sheet.arrow(184, 240)
    hair = {trait.name: getattr(BEN, trait.name) for trait in fields(Identity) if trait.name.startswith("hair")}
    sheet.put(person(216, replace(ANNA, **hair), party), 248, 132)
    return sheet.picture


def painting(side: int) -> Image.Image:
    """As with a broad brush."""
    picture = person(side, scene=GARDEN).filter(ImageFilter.ModeFilter(5))
    return picture.filter(ImageFilter.SMOOTH_MORE).quantize(24).convert("RGB")


def slider() -> Image.Image:
    sheet = Sheet()
    for x, smiling in ((24, False), (272, True)):
        sheet.put(person(184, scene=replace(PHOTO, smiling=smiling)), x, 110)
    sheet.pen.line([60, 360, 420, 360], fill=LINE, width=8)
    sheet.pen.ellipse([330, 340, 370, 380], fill=INK)
    sheet.word("-", 40, 358, 40)
    sheet.word("+", 442, 358, 40)
    return sheet.picture


def another_base() -> Image.Image:
    """The same person, by a large model and by a small one."""
    sheet = Sheet()
    sheet.put(person(110), 185, 24)
    for x, side, word in ((24, 220, "SDXL"), (324, 132, "SSD-1B")):
        y = 290 - side // 2
        sheet.put(person(side, scene=FOREST), x, y)
        sheet.word(word, x + side // 2, y + side + 26)
    sheet.arrow(258, 290, 34)
    return sheet.picture


def comparison(*others: str) -> Image.Image:
    """The photo, and an empty frame for each method: who is more alike is for the workflow to say."""
    sheet = Sheet()
    labels = ["photo", "HyperLoRA", *others]
    columns = len(labels) if len(labels) < 4 else 3
    side = (SIDE - 24) // columns - 16
    rows = -(-len(labels) // columns)
    for number, label in enumerate(labels):
        x = 24 + number % columns * (side + 12)
        y = (SIDE - rows * (side + 60)) // 2 + number // columns * (side + 60)
        if label == "photo":
            sheet.put(person(side), x, y)
        else:
            sheet.frame(x, y, side, side)
            sheet.word("?", x + side // 2, y + side // 2, 60)
        sheet.word(label, x + side // 2, y + side + 24, 18)
    return sheet.picture


def demo() -> Image.Image:
    sheet = Sheet()
    scenes = [
        PHOTO,
        FOREST,
        Scene(background="blue", shirt="green"),
        Scene(background="red", glasses=True, smiling=True),
    ]
    for number, scene in enumerate(scenes):
        sheet.put(person(204, (ANNA, BEN)[number % 2], scene), 30 + number % 2 * 216, 30 + number // 2 * 216)
    return sheet.picture


PHOTOS = (
    PHOTO,
    replace(PHOTO, turn=0.3, background="brown"),
    replace(PHOTO, light="left", smiling=True),
    replace(PHOTO, glasses=True),
)
DANCING = replace(FOREST, scale=0.18, centre=(0.5, 0.3), hat=None)
TURNED = replace(FOREST, turn=0.3, roll=0.2, hat=None)
THUMBNAILS = {
    "01_portrait_from_photo": partial(from_photos, PHOTO),
    "02_portrait_from_several_photos": partial(from_photos, *PHOTOS),
    "03_two_people": two_people,
    "04_pose_with_controlnet": partial(guided, skeleton, partial(person, scene=DANCING)),
    "05_pose_with_instantid_controlnet": partial(guided, key_points, partial(person, scene=TURNED)),
    "06_face_detailer": detailer,
    "07_face_detailer_impact_pack": partial(detailer, "Impact Pack"),
    "08_change_only_the_face": change_face,
    "09_image_to_image_and_style": partial(guided, partial(person, who=BEN, scene=GARDEN), painting),
    "10_concept_slider": slider,
    "11_move_to_another_base": another_base,
    "21_compare_with_instantid": partial(comparison, "InstantID"),
    "22_compare_with_ip_adapter_faceid": partial(comparison, "IP-Adapter"),
    "23_compare_with_pulid": partial(comparison, "PuLID"),
    "24_compare_all": partial(comparison, "InstantID", "IP-Adapter", "PuLID"),
    "demo": demo,
}


def main() -> None:
    for name, draw in THUMBNAILS.items():
        draw().save(FOLDER / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
