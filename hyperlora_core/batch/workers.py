"""Processes that look at photos, one photo at a time each; a photo that ends its process costs nothing but itself."""

import multiprocessing
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection

from ..errors import HyperLoRAError
from .faces import Look, Wanted, open_reader

AHEAD = 4  # photos in hand per process
ATTEMPTS = 2  # a process may have ended for a reason that is not the photo's
DIED = "{}: the process that looked at it ended, {} times; often memory ran out: scale the photo down, or give fewer workers."


class Workers:
    """`count` processes, each with the face pack opened once. To be used as a context; Ctrl-C doesn't reach them.

    `setup`: the arguments of faces.open_reader.
    """

    def __init__(self, count: int, *setup: object):
        self._setup = setup
        # a fresh interpreter each: onnxruntime and CUDA don't survive a fork
        self._context = multiprocessing.get_context("spawn")
        self._lock = threading.Lock()
        self._closing = False
        self._processes: list[multiprocessing.Process] = []
        self._own = threading.local()  # each thread has a process of its own and waits for it
        self._threads = ThreadPoolExecutor(count, "faces", _shield)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        with self._lock:
            self._closing = True
            for process in self._processes:
                process.terminate()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.join()

    def look(self, photos: Iterable[str], ahead: int) -> Iterator[Look | str]:
        """What each photo shows, or why not, in their order; at most `ahead` are in hand.

        Raises HyperLoRAError when a process can't be started or the face pack not be loaded.
        """
        waiting = deque()
        for photo in photos:
            waiting.append(self._threads.submit(self._look, photo))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _look(self, photo: str) -> Look | str:
        for _ in range(ATTEMPTS):
            if getattr(self._own, "connection", None) is None:
                self._own.connection = self._start()
            try:
                self._own.connection.send(photo)
                return self._own.connection.recv()
            except (EOFError, OSError):
                self._own.connection = None
        return DIED.format(photo, ATTEMPTS)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._setup), daemon=True)
        with self._lock:
            if self._closing:
                raise HyperLoRAError("The work was stopped.")
            process.start()
            self._processes.append(process)
        theirs.close()
        try:
            problem = ours.recv()
        except (EOFError, OSError) as error:
            raise HyperLoRAError(
                "A process that looks for faces ended while it started; often memory ran out: give fewer workers (--workers)."
            ) from error
        if problem is not None:
            raise problem
        return ours


def _shield() -> None:
    """Processes that this thread starts inherit that Ctrl-C doesn't reach them, also while they start."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _serve(connection: Connection, face_pack: str, provider: str, wanted: Wanted) -> None:
    """A worker process: answers photos until the main process stops it, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # in order, so that temporary folders go
    try:
        reader = open_reader(face_pack, provider, wanted)
    except HyperLoRAError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            photo = connection.recv()
        except (EOFError, OSError):
            return
        look = reader(photo)
        with suppress(OSError):  # the next recv ends it
            connection.send(look)
