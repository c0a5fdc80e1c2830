"""Bars for work that says how far it is."""

from collections.abc import Callable

from tqdm import tqdm


def following(bar: tqdm) -> Callable[..., None]:
    """A `progress(done, total, **counts)` that moves `bar`; counts, such as failed=2, are shown behind it."""

    def progress(done: int, total: int, **counts: int) -> None:
        bar.total = total
        if counts:
            bar.set_postfix(counts, refresh=False)
        bar.update(done - bar.n)

    return progress
