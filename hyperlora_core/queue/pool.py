"""The jobs that no server has, and who takes which."""

import asyncio
from collections.abc import Collection, Iterable
from itertools import chain

from .jobs import Job


class Pool:
    """Servers take jobs from here and give back what they can't do."""

    def __init__(self, jobs: Iterable[Job], servers: Iterable[str]):
        self._waiting: dict[str, dict[str, Job]] = {}  # person -> job's id -> job
        self.unfinished: set[str] = set()  # ids, also of jobs that servers have
        self._persons = dict.fromkeys(servers, "")  # whom each server was given last
        self._bells: list[asyncio.Event] = []
        for job in jobs:
            self.unfinished.add(job.id)
            self.give_back(job)

    def bell(self) -> asyncio.Event:
        """Rings when there is something to do: a job was given back, or all are finished."""
        self._bells.append(asyncio.Event())
        return self._bells[-1]

    def take(self, server: str) -> Job | None:
        """A job for a server: of the person whom it had last, whose identity lies in its cache; else of one nobody has."""
        last, busy = self._persons[server], set(self._persons.values())
        persons = chain([last], (person for person in self._waiting if person not in busy), self._waiting)
        for person in persons:
            for job in self._waiting.get(person, {}).values():
                if server not in job.refused:
                    self._remove(job)
                    self._persons[server] = person
                    return job
        return None

    def claim(self, prompt_ids: Collection[str]) -> list[Job]:
        """Take those that a server has already, from an earlier run."""
        found = [job for jobs in self._waiting.values() for job in jobs.values() if job.prompt_id in prompt_ids]
        for job in found:
            self._remove(job)
        return found

    def give_back(self, job: Job) -> None:
        """The job is to be done, after its person's others."""
        self._waiting.setdefault(job.person, {})[job.id] = job
        self._ring()

    def finish(self, job: Job) -> None:
        """The job is done, or given up."""
        self.unfinished.discard(job.id)
        if not self.unfinished:
            self._ring()

    def leave(self, server: str) -> None:
        """The server takes no more."""
        self._persons.pop(server, None)

    def refused(self) -> list[Job]:
        """Take the jobs that every server has refused."""
        waiting = [job for jobs in self._waiting.values() for job in jobs.values()]
        found = [job for job in waiting if job.refused and self._persons.keys() <= job.refused.keys()]
        for job in found:
            self._remove(job)
        return found

    def _remove(self, job: Job) -> None:
        del self._waiting[job.person][job.id]
        if not self._waiting[job.person]:
            del self._waiting[job.person]

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()
