"""How like a person pictures are: the cosine of face embeddings, by the recognition network of a face pack."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .errors import HyperLoRAError
from .face.analyzer import FaceAnalyzer
from .photo import read_photo


class Similarity(NamedTuple):
    """What one picture shows of a person."""

    cosine: float | None  # -1 to 1, of the face that is most like the person; None: no face
    faces: int

    @property
    def value(self) -> float:
        """The cosine; a picture without a face is like nobody: 0."""
        return self.cosine or 0.0

    @property
    def words(self) -> str:
        """For people."""
        if self.cosine is None:
            return "no face found"
        return f"similarity {self.cosine:.2f}" + (f" (the nearest of {self.faces} faces)" if self.faces > 1 else "")


def person_embedding(faces: FaceAnalyzer, photos: Sequence[object], which: str | int = "largest") -> np.ndarray:
    """Photos of one person, of any form that `read_photo` takes -> the mean direction of their embeddings [512].

    Raises NoFaceError or HyperLoRAError naming the photo.
    """
    if len(photos) == 0:
        raise HyperLoRAError("There is no reference photo to compare with: connect one of the person.")
    embeddings = []
    for number, source in enumerate(photos, start=1):
        name = f"reference photo {number}"
        embeddings.append(faces.face(read_photo(source, name), which, name).embedding)
    mean = np.mean(embeddings, axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise HyperLoRAError("The reference photos show people who cancel out: use photos of one person.")
    return mean / length


def similarities(
    faces: FaceAnalyzer,
    person: np.ndarray,
    pictures: Sequence[object],
    progress: Callable[[int, int], None] | None = None,
) -> list[Similarity]:
    """Compare each picture, of any form that `read_photo` takes, with a person's embedding [512] of length 1.

    `progress(done, total)` may raise to stop.
    """
    results = []
    for number, source in enumerate(pictures, start=1):
        photo = read_photo(source, f"Picture {number}")
        cosines = [float(face.embedding @ person) for face in faces.faces(photo)]
        results.append(Similarity(max(cosines, default=None), len(cosines)))
        if progress is not None:
            progress(number, len(pictures))
    return results


def mean_similarity(results: Sequence[Similarity]) -> float:
    """Over pictures; one without a face counts 0."""
    return float(np.mean([result.value for result in results])) if results else 0.0
