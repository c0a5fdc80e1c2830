"""What is measured on a method's pictures, picture by picture, and summed over people."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .attributes import Looks, asked, right
from .figures import Measured, along, share
from .instruments import Readings
from .people import Person

CARRIED = ("background", "shirt")  # what the base branch is for: surroundings and clothes, by their colours


class PictureScore(NamedTuple):
    """One picture's measurements."""

    prompt: str
    found: bool  # a face
    cosine: float  # to the person's gallery photo, by the measuring network; 0 without a face
    id_sim: float  # to the first reference photo, likewise
    fidelity: float  # of CLIP's views of both faces, picture and first reference photo; 0 without a face
    rank: int  # of the person among all by that cosine, 1 the nearest; the last without a face
    copied: float  # WithAnyone's copy-paste metric; NaN without a face or a gallery photo
    sharpness: float
    seen: Looks
    right: dict[str, bool]  # of what the prompt asks for
    carried: dict[str, bool]  # whether CARRIED are those of the first photo
    clip_i: float  # cosine of CLIP's views with and without identity; NaN where there is no such pair
    clip_t: float  # cosine of CLIP's views of picture and prompt; NaN where nothing reads both


class Known(NamedTuple):
    """What is known to show each person: embeddings [people, c] of the gallery and of the first photo, and CLIP's view of
    the face in that photo [people, c'].
    """

    gallery: np.ndarray  # the first photo's, where there is no other
    photos: np.ndarray
    faces: np.ndarray


def ranks(embeddings: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Place of each person for their own pictures: embeddings [p, k, c], gallery [p, c] -> [p, k], 1 is the nearest.

    Ties count against the person, so that a picture without a face (zeros) comes last.
    """
    alike = embeddings @ gallery.T  # (p, k, c) x (c, p) -> (p, k, p)
    own = np.einsum("pkp->pk", alike)[..., None]
    return (alike >= own).sum(2)


def copy_paste(picture: np.ndarray, truth: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """How much nearer a picture is to the reference photo than to another true picture, in units of these two's
    distance: (theta_gt - theta_gr) / theta_tr (WithAnyone, arXiv 2510.14975). Embeddings [..., c] of length 1.

    -1: like the other true picture; 0: equally far from both; 1: a copy of the photo.
    """

    def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.arccos(np.clip((a * b).sum(-1), -1, 1))

    return (angle(picture, truth) - angle(picture, photo)) / np.maximum(angle(truth, photo), 1e-6)


def score_pictures(
    people: Sequence[Person],
    prompts: str,
    read: Readings,
    known: Known,
    base: Readings | None = None,
    texts: Mapping[str, np.ndarray] | None = None,
) -> list[list[PictureScore]]:
    """Score the readings of people's pictures for their `prompts` (a set's name), person after person.

    `base`: the readings of the same prompts and noises without identity. `texts`: prompt -> CLIP's view of it [c'].
    """
    k = len(read.embeddings) // len(people)
    embeddings = read.embeddings.reshape(len(people), k, -1)
    cosines = np.einsum("pkc,pc->pk", embeddings, known.gallery)
    places = ranks(embeddings, known.gallery)
    copied = copy_paste(embeddings, known.gallery[:, None], known.photos[:, None])
    id_sims = np.einsum("pkc,pc->pk", embeddings, known.photos)
    fidelity = np.einsum("pkc,pc->pk", read.faces.reshape(len(people), k, -1), known.faces)
    clip_i = np.full(len(people) * k, np.nan) if base is None else (read.clip * base.clip).sum(1)
    rows = []
    for i, person in enumerate(people):
        row = []
        for j, prompt in enumerate(person.prompts[prompts]):
            at = i * k + j
            found, seen = bool(read.found[at]), read.looks[at]
            row.append(
                PictureScore(
                    prompt=prompt,
                    found=found,
                    cosine=float(cosines[i, j]),
                    id_sim=float(id_sims[i, j]),
                    fidelity=float(fidelity[i, j]),
                    rank=int(places[i, j]),
                    copied=float(copied[i, j]) if found and person.gallery is not None else np.nan,
                    sharpness=float(read.sharpness[at]),
                    seen=seen or {},
                    right={} if seen is None else right(asked(prompt), seen),
                    carried={} if seen is None else right({name: person.looks[name] for name in CARRIED}, seen),
                    clip_i=float(clip_i[at]),
                    clip_t=np.nan if texts is None else float(read.clip[at] @ texts[prompt]),
                )
            )
        rows.append(row)
    return rows


def measured(
    scores: list[list[PictureScore]],
    none: list[list[PictureScore]] | None,
    truth: list[list[PictureScore]] | None,
    edits: bool,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, Measured]:
    """Name -> measurement of a method's `scores` [people][pictures].

    `none`: the base model's; `truth`: those of other true renders; None where there are none. `edits`: whether `scores`
    and `none` are of the same prompts and noises, so that what the base model gets right can be asked for. `kinds`: prompt
    -> class, in which CLIP-T is told too.
    """
    measures = {
        "retrieval": share(_array(scores, "rank") == 1),
        "fidelity": share(_array(scores, "fidelity")),
        "ID Sim": share(_array(scores, "id_sim")),
        "CLIP-T": _mean(_array(scores, "clip_t")),
        "sharpness": share(_array(scores, "sharpness")),
        "cosine": share(_array(scores, "cosine")),
        "faces": share(_array(scores, "found")),
        "prompt": _hits(scores, "right"),
        "carried": _hits(scores, "carried"),
        "copy-paste": _mean(_array(scores, "copied")),
        "CLIP-I": _mean(_array(scores, "clip_i")),
    }
    if none is not None and truth is not None:
        sides = [_array(rows, "cosine").mean(1) for rows in (scores, none, truth)]
        measures["similarity"] = Measured(np.stack(sides, 1), along)
    prompts = np.array([[score.prompt for score in row] for row in scores])
    for kind in dict.fromkeys((kinds or {}).values()):
        of_kind = np.isin(prompts, [prompt for prompt, of in kinds.items() if of == kind])
        measures[f"CLIP-T, {kind}"] = _mean(np.where(of_kind, _array(scores, "clip_t"), np.nan))
    if edits and none is not None:
        measures["editability"] = _kept(scores, none)
        names = sorted({name for row in scores for score in row for name in score.right})
        measures |= {f"editability, {name}": _kept(scores, none, name) for name in names}
    return measures


def _array(scores: list[list[PictureScore]], field: str) -> np.ndarray:
    return np.array([[getattr(score, field) for score in row] for row in scores])


def _mean(values: np.ndarray) -> Measured:
    """Of the values [p, k] that aren't NaN."""
    known = np.isfinite(values)
    return share(np.where(known, values, 0.0), known)


def _hits(scores: list[list[PictureScore]], field: str) -> Measured:
    """Share of True among the attributes of the pictures' `field`."""
    sets: list[list[Mapping[str, bool]]] = [[getattr(score, field) for score in row] for row in scores]
    hits = np.array([[sum(of.values()) for of in row] for row in sets])
    return share(hits, np.array([[len(of) for of in row] for row in sets]))


def _kept(scores: list[list[PictureScore]], none: list[list[PictureScore]], only: str | None = None) -> Measured:
    """Of the attributes that the base model's picture has right, the share that is right here too."""

    def kept(score: PictureScore, base: PictureScore) -> tuple[int, int]:
        names = [name for name, hit in base.right.items() if hit and only in (None, name)]
        return sum(score.right[name] for name in names), len(names)

    counts = np.array(
        [
            [kept(score, base) for score, base in zip(row, base_row, strict=True)]
            for row, base_row in zip(scores, none, strict=True)
        ]
    )  # (p, k, 2)
    return share(counts[..., 0], counts[..., 1])
