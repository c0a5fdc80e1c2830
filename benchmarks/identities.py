"""Sliders, blends and a wrong photo among five, measured in pictures of people whom no network has seen.

    python -m benchmarks.identities slider      by two photos that differ in one thing: lighter skin and hair, a smile, ...
    python -m benchmarks.identities blend       from one person to another
    python -m benchmarks.identities wrong       one wrong person among five photos, weighted equally and by agreement

Writes a table and a sheet of pictures into --out; the exit status is 1 when a claim doesn't hold. With the defaults a few
hundred pictures of 128 x 128 are painted, some minutes on two CPU cores; --people 4 --steps 8 gives a first look.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from hyperlora_core import Identity, PhotoEncoder, merge_branches, open_encoder
from hyperlora_core.basis import LoRA
from hyperlora_core.demo.portraits import HELD_OUT, Scene, render
from hyperlora_core.demo.portraits import Identity as Drawn
from hyperlora_core.evaluate.attributes import FLAGS, AttributeReader
from hyperlora_core.evaluate.grid import Cell, draw_grid
from hyperlora_core.evaluate.instruments import MeasuringNetwork
from hyperlora_core.evaluate.paint import Job, Painter
from hyperlora_core.face.prepare import face_square
from hyperlora_core.files import written_aside
from hyperlora_core.locate import DEMO, DEMO_CLIP, DEMO_FACES, demo_folder
from hyperlora_core.pipeline import load_pipeline
from hyperlora_core.precision import fast_half
from hyperlora_core.prompt import with_trigger
from hyperlora_core.slider import slider_lora

PROMPT = with_trigger("portrait of a person, green background, white shirt")
WORN = ("smiling", "glasses", "old")  # in the scene
# trait of a person: its two ends, and where its lightness is seen, in halves of the face's square: left, right, top, bottom
TRAITS = {
    "skin_tone": (0.15, 0.85, (0.5, 0.5, 0.3, 0.5)),
    "hair_colour": (0.0, 0.6, (0.4, 0.4, 1.7, -1.3)),  # black to blond
}
AMOUNTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SLIDERS = len(TRAITS) + len(WORN)
DONORS = 700  # place among the held-out people from which on the sliders' own photos are drawn
PLAIN = {"sketch": 0, "hat": 0, "glasses": 0}
SLACK = 0.01  # by which a mean may step back and still count as monotone: noise of the pictures
KEPT = 0.8  # share of the similarity that a slider leaves
SHEET_PEOPLE = 6


class Bench(NamedTuple):
    """What all three need."""

    people: int
    photos: int  # for each end of a slider
    batch: int
    id_weight: float
    base_weight: float
    guide: bool
    encoder: PhotoEncoder
    painter: Painter
    faces: MeasuringNetwork
    attributes: AttributeReader
    out: Path

    def lora(self, identity: Identity) -> LoRA:
        """The person, to be used at weight 1."""
        hyper = self.encoder.hyper
        base = hyper.lora(identity.base_coefficients, "base") if hyper.has_base and self.base_weight else None
        return merge_branches(hyper.lora(identity.coefficients), base, self.id_weight, self.base_weight)

    def paint(self, what: str, loras: Mapping[str, Sequence[LoRA]]) -> dict[str, list[np.ndarray]]:
        """Column -> a picture of each person: the same noise in all columns."""
        painted = {}
        with tqdm(total=sum(map(len, loras.values())), desc=what, unit="picture", disable=None) as bar:
            for column, of in loras.items():
                painted[column] = []
                for start in range(0, len(of), self.batch):
                    part = of[start : start + self.batch]
                    jobs = [Job(PROMPT, start + number, lora, self.guide) for number, lora in enumerate(part)]
                    painted[column] += self.painter.paint(jobs)
                    bar.update(len(part))
        return painted


def photo(person: int, kind: int, traits: Mapping[str, float] | None = None, **changes) -> np.ndarray:
    """A photo of the held-out person, or of one with other `traits`, in a scene that `kind` names: plain, but for `changes`."""
    scene = Scene.random(np.random.default_rng([person, kind]), **PLAIN)
    who = replace(Drawn.from_seed(HELD_OUT[person]), **(traits or {}))
    return render(who, replace(scene, **{"smiling": False, "old": False, **changes})).image


def gallery(bench: Bench, people: Sequence[int]) -> np.ndarray:
    """Embeddings [n, c] of photos that no identity was read from."""
    return bench.faces.embed_all([photo(person, 99) for person in people])


def rising(values: Sequence[float]) -> bool:
    return bool((np.diff(values) >= -SLACK).all()) and values[-1] - values[0] > SLACK


def slider_ends(name: str, donor: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Two photos of the donor, the same but for what the slider is to move."""
    if name in TRAITS:
        return tuple(photo(donor, kind, {name: value}) for value in TRAITS[name][:2])
    return tuple(photo(donor, kind, **{name: on}) for on in (False, True))


def shown(bench: Bench, name: str, pictures: Sequence[np.ndarray]) -> float:
    """How much of it pictures show: lightness, 0 to 1, or the chance that the attribute is there."""
    if name not in TRAITS:
        return bench.attributes.chances(pictures)[name][:, FLAGS.index("yes")].mean()
    seen = []
    for picture in pictures:
        for face in bench.encoder.faces.faces(picture)[:1]:
            x0, y0, x1, y1 = np.clip(face_square(face.landmarks).box(*TRAITS[name][2]), 0, len(picture)).astype(int)
            if x1 > x0 and y1 > y0:
                seen.append(picture[y0:y1, x0:x1].mean() / 255)
    return float(np.mean(seen))


def slider(bench: Bench) -> tuple[list[str], list[str]]:
    """Each thing, by the difference of the LoRAs and, to compare, of the coefficients."""
    people = range(bench.people)
    identities = [bench.encoder.encode([photo(person, 0)]).identity for person in people]
    own, known = [bench.lora(identity) for identity in identities], gallery(bench, people)
    table = ["| what | by | " + " | ".join(f"{a:+.1f}" for a in AMOUNTS) + " |", "|---" * (len(AMOUNTS) + 2) + "|"]
    broken = []
    for number, name in enumerate((*TRAITS, *WORN)):
        donors = [DONORS + number + SLIDERS * kind for kind in range(bench.photos)]
        photos = zip(*(slider_ends(name, donor, kind) for kind, donor in enumerate(donors)), strict=True)
        ends = [bench.encoder.encode(end).identity for end in photos]
        for way in ("LoRA", "coefficients"):
            loras = {f"{amount:+.1f}": [] for amount in AMOUNTS}
            for amount in AMOUNTS:
                for identity, person in zip(identities, own, strict=True):
                    if way == "LoRA":
                        moving = slider_lora(bench.encoder.hyper, *ends, amount)
                        loras[f"{amount:+.1f}"].append(merge_branches(person, moving, 1.0, 1.0))
                    else:
                        step = amount * (ends[1].coefficients - ends[0].coefficients)
                        moved = replace(identity, coefficients=identity.coefficients + step)
                        loras[f"{amount:+.1f}"].append(bench.lora(moved))
            pictures = bench.paint(f"{name}, {way}", loras)
            moved_to = [shown(bench, name, of) for of in pictures.values()]
            alike = [(bench.faces.embed_all(of) * known).sum(1).mean() for of in pictures.values()]
            kept = np.array(alike) / alike[AMOUNTS.index(0)]
            table.append(f"| {name} | {way} | " + " | ".join(f"{v:.2f}" for v in moved_to) + " |")
            table.append("| similarity kept | | " + " | ".join(f"{v:.2f}" for v in kept) + " |")
            save_sheet(bench.out / f"slider_{name}_{way}.png", pictures)
            # a trait's ends lie far apart: beyond 1 either way pictures break, and it is the person who changes
            trait = name in TRAITS
            if way == "LoRA" and not rising(moved_to[1:-1] if trait else moved_to):
                broken.append(f"{name} doesn't rise with the amount")
            if way == "LoRA" and not trait and kept.min() < KEPT:
                broken.append(f"{name} leaves {kept.min():.2f} of the similarity")
    return table, broken


def blend(bench: Bench) -> tuple[list[str], list[str]]:
    """From each person to the next."""
    people = range(bench.people)
    identities = [bench.encoder.encode([photo(person, 0)]).identity for person in people]
    known = gallery(bench, people)
    loras = {
        f"{share:.2f}": [
            bench.lora(Identity.blend([(identity, 1 - share), (identities[(n + 1) % len(identities)], share)]))
            for n, identity in enumerate(identities)
        ]
        for share in SHARES
    }
    pictures = bench.paint("blend", loras)
    embeddings = [bench.faces.embed_all(of) for of in pictures.values()]
    first = [(of * known).sum(1).mean() for of in embeddings]
    second = [(of * np.roll(known, -1, axis=0)).sum(1).mean() for of in embeddings]
    save_sheet(bench.out / "blend.png", pictures)
    table = [
        "| similarity to | " + " | ".join(f"{share:.2f}" for share in SHARES) + " |",
        "|---" * (len(SHARES) + 1) + "|",
        "| the first | " + " | ".join(f"{v:.3f}" for v in first) + " |",
        "| the second | " + " | ".join(f"{v:.3f}" for v in second) + " |",
    ]
    broken = [] if rising(second) and rising([-v for v in first]) else ["the similarity isn't monotone in the share"]
    return table, broken


def wrong(bench: Bench) -> tuple[list[str], list[str]]:
    """Four photos of a person and one of the next, against the four alone."""
    people = range(bench.people)
    known = gallery(bench, people)
    loras: dict[str, list[LoRA]] = {"four right": [], "equal": [], "agreement": []}
    for person in people:
        right = [photo(person, kind) for kind in range(4)]
        five = [*right, photo((person + 1) % bench.people, 0)]
        loras["four right"].append(bench.lora(bench.encoder.encode(right).identity))
        for weighting in ("equal", "agreement"):
            encoded = bench.encoder.encode(five, weighting=weighting)
            loras[weighting].append(bench.lora(encoded.identity))
    pictures = bench.paint("wrong photo", loras)
    table, similarity = ["| weighting | similarity | right person found |", "|---|---|---|"], {}
    for name, of in pictures.items():
        cosines = bench.faces.embed_all(of) @ known.T
        similarity[name] = float(np.diag(cosines).mean())
        found = (cosines.argmax(1) == np.arange(len(cosines))).mean()
        table.append(f"| {name} | {similarity[name]:.3f} | {found:.2f} |")
    save_sheet(bench.out / "wrong.png", pictures)
    spoiled = similarity["agreement"] < similarity["four right"] - SLACK
    return table, ["the wrong photo still shows, weighted by agreement"] if spoiled else []


def save_sheet(path: Path, pictures: Mapping[str, list[np.ndarray]]) -> None:
    rows = [("", [Cell(picture, []) for picture in row]) for row in list(zip(*pictures.values(), strict=True))]
    with written_aside(path) as aside:
        draw_grid(list(pictures), rows[:SHEET_PEOPLE]).save(aside, format="PNG")


MEASURES = {"slider": slider, "blend": blend, "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument(
        "--photos",
        type=int,
        default=1,
        help="for each end of a slider, each of another person (default: 1, two in all)",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--id-weight", type=float, default=0.8)
    parser.add_argument("--base-weight", type=float, default=0.0)
    parser.add_argument("--guide", action="store_true", help="the LoRA for the prompt only, not for the negative one")
    parser.add_argument("--checkpoint", default=DEMO, help="another HyperLoRA of the demo (default: the shipped)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/identities"))
    asked = parser.parse_args()
    models = demo_folder()
    encoder = open_encoder(asked.checkpoint, models / DEMO_FACES, models / DEMO_CLIP, device=asked.device)
    bench = Bench(
        asked.people,
        asked.photos,
        asked.batch,
        asked.id_weight,
        asked.base_weight,
        asked.guide,
        encoder,
        Painter(load_pipeline(models, device=asked.device), asked.steps, asked.cfg, autocast=fast_half(asked.device)),
        MeasuringNetwork(models / "face_measure", encoder.faces),
        AttributeReader(models / "attribute_measure"),
        asked.out,
    )
    table, broken = MEASURES[asked.measure](bench)
    text = "\n".join([*table, "", *(f"NOT SO: {sentence}" for sentence in broken)])
    with written_aside(asked.out / f"{asked.measure}.md") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
