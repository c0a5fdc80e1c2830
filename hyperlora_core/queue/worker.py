"""One server's share of a queue."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from ..files import written_aside
from .client import AwayError, Client, GoneError, RefusedError, UnfitError
from .jobs import Inputs, Job, Photo
from .journal import Journal
from .pool import Pool
from .results import Outcome, RemoteFile, read_outcome
from .watch import Options, Watch
from .workflow import Workflow, title

CHECK = 5.0  # s between looks at the queue, for what no message told of
RECONNECT = 1.0  # s between attempts
LAST_WORDS = 10.0  # s for each of the two steps of stopping
REFUSALS = 3  # jobs in a row; then the workflow is the reason, not the job


class Worker:
    """Keeps a server busy with jobs from the pool and fetches what it makes."""

    def __init__(
        self,
        client: Client,
        pool: Pool,
        journal: Journal,
        workflow: Workflow,
        inputs: Inputs,
        options: Options,
        watch: Watch,
    ):
        self.client, self.pool, self.journal, self.options, self.watch = client, pool, journal, options, watch
        self.workflow, self.inputs = workflow, inputs
        self.jobs: dict[str, Job] = {}  # that this server has, or is being given
        self._bell = pool.bell()
        self._ended: set[str] = set()  # prompts of whose end a message told
        self._running = ""  # the prompt at work
        self._uploaded: dict[str, str] = {}  # photo's digest -> its name on the server
        self._refusals = 0  # in a row
        self._sending: asyncio.Future | None = None
        self._check_due = 0.0

    async def run(self) -> str:
        """Work until all jobs are finished, by whomever; returns why the server was given up, or ""."""
        away_since = None
        reason = ""
        while self.pool.unfinished and not reason:
            try:
                async with self.client.listen() as messages:
                    if away_since is not None:
                        self.watch.said(f"{self.client.url} is back.")
                    away_since = None
                    await self._work(messages)
            except AwayError as error:
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    self.watch.said(
                        f"{self.client.url} doesn't answer ({error}): waiting for it, up to {self.options.patience:.0f} s."
                    )
                if now - away_since >= self.options.patience:
                    reason = f"{self.client.url} didn't answer for {self.options.patience:.0f} s ({error})"
                else:
                    await asyncio.sleep(RECONNECT)
            except UnfitError as error:
                reason = str(error)
                await self.stop()
        if reason:
            self._leave(reason)
        return reason

    async def stop(self) -> None:
        """Leave nothing of ours in the server's queue."""
        with suppress(AwayError, UnfitError, RefusedError, asyncio.TimeoutError):
            if self._sending is not None:  # it may arrive after we looked
                await asyncio.wait_for(self._sending, LAST_WORDS)
        with suppress(AwayError, UnfitError, asyncio.TimeoutError):
            await asyncio.wait_for(self.client.clear(), LAST_WORDS)

    def _leave(self, reason: str) -> None:
        self.watch.said(reason)
        self.pool.leave(self.client.url)
        for job in list(self.jobs.values()):
            self._release(job)
        self._give_up_refused()

    async def _work(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        """While the connection holds."""
        self._uploaded.clear()  # another server may have come back, with other files
        listener = asyncio.ensure_future(self._listen(messages))
        try:
            await self._look(new_connection=True)
            while self.pool.unfinished:
                self._bell.clear()
                while len(self.jobs) < self.options.ahead and (job := self.pool.take(self.client.url)):
                    self.jobs[job.id] = job
                    await self._send(job)
                if listener.done():
                    await listener
                    raise AwayError("it closed the connection")
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._bell.wait(), CHECK)
                await self._collect()
        finally:
            listener.cancel()
            await asyncio.wait({listener})

    async def _listen(self, messages: AsyncIterator[dict[str, Any]]) -> None:
        try:
            async for message in messages:
                if isinstance(data := message.get("data"), dict):  # other packs send all sorts of things
                    self._hear(message.get("type", ""), data)
        finally:
            self._bell.set()

    def _hear(self, kind: str, data: dict[str, Any]) -> None:
        prompt_id = data.get("prompt_id", "")
        job = next((job for job in self.jobs.values() if job.prompt_id == prompt_id), None)
        if job is None:
            return
        if kind == "executing" and data.get("node") is None:  # its history is there now
            self._ended.add(prompt_id)
            self._running = ""
            self._bell.set()
        elif kind in ("execution_start", "executing"):
            self._running = prompt_id
        elif kind == "progress_state":
            for node in data["nodes"].values():
                shown = node.get("display_node_id")  # a node that expands runs as others
                if node["state"] == "running" and shown in self.workflow:
                    self.watch.progress(self.client.url, job, title(self.workflow, shown), node["value"], node["max"])

    async def _collect(self) -> None:
        """Fetch what has ended."""
        if time.monotonic() >= self._check_due:
            await self._look()
        while self._ended:
            prompt_id = self._ended.pop()
            for job in list(self.jobs.values()):
                if job.prompt_id == prompt_id and (entry := await self.client.history(prompt_id)):
                    await self._take(job, entry)

    async def _look(self, new_connection: bool = False) -> None:
        """Compare what the server has with what it should have."""
        running, pending = await self.client.queue()
        there = running | pending
        for job in list(self.jobs.values()):
            if job.prompt_id in there:
                continue
            # the queue was read before: what has left it since is in the history
            if entry := await self.client.history(job.prompt_id):
                await self._take(job, entry)
            elif new_connection and job.prompt_id != self._running:
                self._release(job)
            else:
                how = (
                    "stopped while this ran"
                    if new_connection
                    else "lost it: somebody cleared its queue, or it restarted"
                )
                self._fail(job, f"The server {how}.")
        if new_connection:
            self.jobs |= {job.id: job for job in self.pool.claim(there)}
        self._running = next(iter(running), "")
        self._check_due = time.monotonic() + CHECK

    async def _send(self, job: Job) -> None:
        """Queue the job, unless the server has done it already."""
        while entry := await self.client.history(job.prompt_id):
            if read_outcome(self.workflow, entry).error is None:
                await self._take(job, entry)
                return
            job.attempt += 1  # it failed in a run of which this journal knows nothing
        try:
            names = {photo.digest: await self._upload(photo) for photo in job.photos}
        except OSError as error:
            self._fail(
                job, f"{error.filename} can't be read ({error.strerror}): put it back, or remove it.", final=True
            )
            return
        except RefusedError as error:
            self._turn_down(job, str(error))
            return
        self.journal.sent(job, self.client.url)
        prompt = job.build(self.workflow, self.inputs, names)
        self._sending = asyncio.ensure_future(self.client.send(prompt, job.prompt_id))
        try:
            await asyncio.shield(self._sending)
            self._refusals = 0
        except RefusedError as error:
            self._refuse(job, str(error))

    async def _upload(self, photo: Photo) -> str:
        if photo.digest not in self._uploaded:
            self._uploaded[photo.digest] = await self.client.upload(photo.path, photo.upload_name)
        return self._uploaded[photo.digest]

    async def _take(self, job: Job, entry: dict[str, Any]) -> None:
        """A prompt has ended: its files, or its error."""
        outcome = read_outcome(self.workflow, entry)
        if outcome.error is not None:
            self._fail(job, outcome.error, outcome.final)
            return
        try:
            files = await self._download(job, outcome.files)
        except GoneError as error:
            self._fail(
                job,
                f"The server remembers making its picture, but the file is gone there ({error}): "
                "restart the server, so that it makes it again.",
            )
            return
        self._finish(job, files, outcome)

    async def _download(self, job: Job, remote: tuple[RemoteFile, ...]) -> dict[str, int]:
        files = {}
        names = self.journal.file_names(job, [file.filename.rpartition(".")[2] for file in remote])
        for name, file in zip(names, remote, strict=True):
            content = await self.client.view(file)
            with written_aside(self.journal.out / name) as aside:
                aside.write_bytes(content)
            files[name] = len(content)
        return files

    def _finish(self, job: Job, files: dict[str, int], outcome: Outcome) -> None:
        del self.jobs[job.id]
        self.journal.done(job, files, outcome.similarity, outcome.seconds)
        self.pool.finish(job)
        self.watch.finished(job, list(files), outcome.similarity, outcome.seconds)

    def _fail(self, job: Job, message: str, final: bool = False) -> None:
        job.attempt += 1
        job.tries += 1
        again = not final and job.tries < self.options.tries
        if again:
            self._release(job)
        else:
            del self.jobs[job.id]
            self.journal.failed(job, message)
            self.pool.finish(job)
        self.watch.failed(job, message, again)

    def _turn_down(self, job: Job, message: str) -> None:
        """Another server may take it."""
        job.refused[self.client.url] = message
        self._release(job)
        self._give_up_refused()

    def _refuse(self, job: Job, message: str) -> None:
        self._turn_down(job, message)
        self._refusals += 1
        if self._refusals >= REFUSALS:
            raise UnfitError(f"{self.client.url} doesn't accept the workflow: {message}")

    def _give_up_refused(self) -> None:
        for job in self.pool.refused():
            message = next(reversed(job.refused.values()))
            self.journal.failed(job, message)
            self.pool.finish(job)
            self.watch.failed(job, message, False)

    def _release(self, job: Job) -> None:
        del self.jobs[job.id]
        self.journal.released(job)
        self.pool.give_back(job)
