"""What the demo's face pack says of the drawn training portraits: HyperLoRA learns from found faces, not from true ones.

A data folder (see data.py) gets, for its n portraits:

    embeddings.npy  float32 [n, 512]  of the largest face that was found; NaN where none was
    embedded.npy    uint8 [n]         1 where a portrait has been looked at
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from ..errors import HyperLoRAError
from ..face.analyzer import EMBEDDING_SIZE, FaceAnalyzer
from .data import SIZE, Data
from .features import memory_mapped

JOB = 50  # portraits of one job
# of the detector's input: twice the portraits', where it finds as many as at 640 in a fifth of the time
SIZES = (2 * SIZE,)


def embed_faces(
    folder: str | Path, pack: str | Path, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write the embeddings that are not there yet, in `workers` processes; return how many portraits show no face.

    `pack`: the face pack's folder. `progress(portraits done, portraits)` may raise to stop; what is done stays.
    """
    data = Data(folder)
    n = len(data)
    embeddings, embedded = _arrays(Path(folder), n)
    todo = np.flatnonzero(embedded == 0)
    jobs = [todo[i : i + JOB] for i in range(0, len(todo), JOB)]
    finished = n - len(todo)
    if progress is not None:
        progress(finished, n)
    with ProcessPoolExecutor(workers, initializer=_open, initargs=(folder, pack)) as pool:
        futures = {pool.submit(_embed, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                embeddings[job], embedded[job] = future.result(), 1
                finished += len(job)
                if progress is not None:
                    progress(finished, n)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return int(np.isnan(embeddings[:, 0]).sum())


def load_embeddings(folder: str | Path) -> np.ndarray:
    """The embeddings float32 [n, 512]. Raises HyperLoRAError where they aren't there or unfinished."""
    folder = Path(folder)
    try:
        embedded, embeddings = np.load(folder / "embedded.npy"), np.load(folder / "embeddings.npy", mmap_mode="r")
    except (OSError, ValueError):
        embedded, embeddings = np.zeros(1), np.zeros(0)
    if not embedded.all():
        raise HyperLoRAError(
            f"{folder} lacks the faces' embeddings. Run: hyperlora train demo-faces --out {folder.parent}"
        )
    return embeddings


def _arrays(folder: Path, n: int) -> tuple[np.memmap, np.memmap]:
    return (
        memory_mapped(folder / "embeddings.npy", np.float32, (n, EMBEDDING_SIZE)),
        memory_mapped(folder / "embedded.npy", np.uint8, (n,)),
    )


def _open(folder: str | Path, pack: str | Path) -> None:
    global _images, _analyzer
    _images, _analyzer = Data(folder).images, FaceAnalyzer.load(pack, "cpu")


def _embed(rows: np.ndarray) -> np.ndarray:
    embeddings = np.full((len(rows), EMBEDDING_SIZE), np.nan, np.float32)
    for i, row in enumerate(rows):
        found = _analyzer.detect(_images[row], SIZES)
        if found:
            largest = _analyzer.choose(_images[row], found, "largest", f"portrait {row}")
            embeddings[i] = _analyzer.describe(_images[row], largest).embedding
    return embeddings
