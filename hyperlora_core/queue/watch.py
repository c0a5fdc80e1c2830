"""What a queue is told of its conduct, and what it tells of its progress."""

from typing import NamedTuple

from .jobs import Job


class Options(NamedTuple):
    """How a queue treats its servers."""

    tries: int = 3  # of a job, in one run
    ahead: int = 3  # jobs on a server at once: one runs, the others see to it that it never waits
    patience: float = 300.0  # s that a server may be away


class Watch:
    """What a queue tells of its progress; a user interface overrides what it shows."""

    def began(self, total: int, done: int) -> None:
        """Jobs in all, and those that earlier runs have finished."""

    def progress(self, server: str, job: Job, node: str, value: float, total: float) -> None:
        """A node (its title) of the job at work, and its steps."""

    def finished(self, job: Job, files: list[str], similarity: float | None, seconds: float | None) -> None:
        """The job's files are there."""

    def failed(self, job: Job, message: str, again: bool) -> None:
        """The job failed; it will be tried again, or is given up."""

    def said(self, message: str) -> None:
        """A sentence about a server."""
