"""How much each of several photos of one person counts: by the quality of the face in it, or by what the others show."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import HyperLoRAError
from .face.analyzer import Face

EQUAL, QUALITY, AGREEMENT = WEIGHTINGS = ("equal", "quality", "agreement")

SIDE = 112  # px, of the face that recognition networks see
DETAIL = 0.05  # of a face half as sharp as can be, see `sharpness`
LEAST = 0.01  # weight of the worst photo; it may be the only one

# similarity to the other photos, as a share of what is usual among them
FULL, NONE = 0.75, 0.4
STRANGERS = 0.1  # cosine below which two faces have nothing in common, in any recognition network


class Quality(NamedTuple):
    """What makes a face good to learn from; each from 0 to 1."""

    detection: float  # the detector's score
    size: float
    sharpness: float
    frontality: float

    @property
    def weight(self) -> float:
        """The product, and a little at least."""
        return max(LEAST, self.detection * self.size * self.sharpness * self.frontality)


class Verdict(NamedTuple):
    """The weights of n photos and why."""

    weights: np.ndarray  # [n], at least one above 0
    remarks: list[str]  # a few words on each photo
    summary: str = ""  # a sentence on all of them, where there is something to say

    def shares(self, given: Tensor) -> Tensor:
        """The shares [n] that the user gave, times the weights, summing to 1. Raises HyperLoRAError if nothing is left."""
        product = given * torch.from_numpy(self.weights).to(given)
        if product.sum() <= 0:
            raise HyperLoRAError(
                "The photo weights leave only photos that agreement takes for another person: give the other photos "
                "a weight above 0, or weight photos equally."
            )
        return product / product.sum()

    def added_to(self, lines: list[str], shares: Tensor) -> list[str]:
        """The report's lines, one per photo, with remarks and shares, and the summary as a line of its own."""
        told = [
            "; ".join(filter(None, [line, remark, f"share {share:.0%}"]))
            for line, remark, share in zip(lines, self.remarks, shares.tolist(), strict=True)
        ]
        return [*told, self.summary] if self.summary else told


def quality(photo: np.ndarray, face: Face) -> Quality:
    """Judge a face in a photo uint8 [h, w, 3].

    size: the box's shorter side / 112 px, at most 1. sharpness: see there. frontality: 1 - |2 t - 1|, where t is the place
    of the nose between the eyes, 0 at the left one and 1 at the right.
    """
    left, right, nose = face.keypoints[:3].astype(np.float64)
    apart = right - left
    t = float((nose - left) @ apart / max(float(apart @ apart), 1e-6))
    side = float((face.box[2:] - face.box[:2]).min())
    return Quality(
        detection=float(np.clip(face.score, 0, 1)),
        size=min(1.0, side / SIDE),
        sharpness=sharpness(photo, face.box),
        frontality=max(0.0, 1 - abs(2 * t - 1)),
    )


def sharpness(photo: np.ndarray, box: np.ndarray) -> float:
    """d / (d + 0.05), where d is the variance of the Laplacian per variance of the grey values.

    Of the face at 112 px: what a network sees of it. Light and contrast cancel out.
    """
    height, width = photo.shape[:2]
    x0, y0 = np.floor(box[:2]).clip(0, (width - 1, height - 1)).astype(int)
    x1, y1 = np.ceil(box[2:]).clip((x0 + 1, y0 + 1), (width, height)).astype(int)
    face = Image.fromarray(np.ascontiguousarray(photo[y0:y1, x0:x1])).convert("L")
    grey = np.asarray(face.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    detail = float(laplacian.var() / max(float(grey.var()), 1.0))
    return detail / (detail + DETAIL)


def by_quality(qualities: list[Quality]) -> Verdict:
    """Each photo by its quality."""
    remarks = [
        f"quality {of.weight:.2f} (detection {of.detection:.2f}, size {of.size:.2f}, sharpness {of.sharpness:.2f}, "
        f"frontality {of.frontality:.2f})"
        for of in qualities
    ]
    return Verdict(np.array([of.weight for of in qualities]), remarks)


def by_agreement(embeddings: np.ndarray) -> Verdict:
    """Each photo by how like the others it is: embeddings [n, c] of length 1.

    A photo's similarity is the median of its cosines to the other photos, so that one wrong photo hardly touches those of
    the right ones. It counts fully from 0.75 of the photos' median similarity on, not at all below 0.4, and in a straight
    line between. Fewer than three photos, or photos without a majority, count alike, and the summary says so.
    """
    n = len(embeddings)
    if n < 3:
        return Verdict(np.ones(n), [""] * n, "Agreement needs three photos or more: these count alike.")
    cosines = embeddings @ embeddings.T  # (n, n)
    others = cosines[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    similarity = np.median(others, axis=1)
    usual = float(np.median(similarity))
    remarks = [f"similarity to the others {value:.2f}" for value in similarity]
    if usual < STRANGERS:
        return Verdict(np.ones(n), remarks, "The photos show no one person more than others, so they count alike.")
    weights = ((similarity / usual - NONE) / (FULL - NONE)).clip(0, 1)
    return Verdict(
        weights,
        [f"{remark}: another person?" if w == 0 else remark for remark, w in zip(remarks, weights, strict=True)],
    )
