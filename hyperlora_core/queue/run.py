"""All servers together: a queue from its start to its end, or to the moment when somebody stops it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import HyperLoRAError
from .client import Client, open_session
from .jobs import Inputs, Job
from .journal import INDEX, Journal
from .pool import Pool
from .watch import Options, Watch
from .worker import Worker
from .workflow import Workflow


class Summary(NamedTuple):
    """What came of a queue."""

    done: int  # jobs
    earlier: int  # of them, in earlier runs
    failed: dict[str, str]  # name -> why
    index: Path


async def run_queue(
    workflow: Workflow,
    inputs: Inputs,
    jobs: Sequence[Job],
    servers: Sequence[str],
    out: str | Path,
    options: Options | None = None,
    watch: Watch | None = None,
) -> Summary:
    """Have the jobs done by the servers (addresses as `client.server_url` gives them); files, journal and index go to `out`.

    Jobs that are finished there are left alone; what servers have done or were about to do for an earlier run is fetched.
    When the task is cancelled, or anything else ends it early, the servers' queues are cleared of these jobs.
    Raises HyperLoRAError when no server is left, or the folder can't be written to.
    """
    watch = watch or Watch()
    with Journal(out) as journal:
        todo = journal.begin(jobs)
        watch.began(len(jobs), len(jobs) - len(todo))
        left = []
        if todo:
            left = await _run(
                workflow, inputs, todo, list(dict.fromkeys(servers)), journal, options or Options(), watch
            )
        if problem := journal.write_index():
            watch.said(f"{problem} The next run of the same command writes it.")
        records = [journal.records[job.id] for job in jobs]
    if left:
        done = sum(bool(record.files) for record in records)
        raise HyperLoRAError(
            f"No server is left: {'; '.join(reason.rstrip('.') for reason in left)}. "
            f"{done} of {len(jobs)} jobs are done; when a server is there again, the same command goes on."
        )
    failed = {record.name: record.message for record in records if not record.files}
    return Summary(len(jobs) - len(failed), len(jobs) - len(todo), failed, Path(out) / INDEX)


async def _run(
    workflow: Workflow,
    inputs: Inputs,
    todo: list[Job],
    servers: list[str],
    journal: Journal,
    options: Options,
    watch: Watch,
) -> list[str]:
    """Why each server was given up, if jobs are left."""
    pool = Pool(todo, servers)
    async with open_session() as session:
        workers = [
            Worker(Client(url, session, journal.client_id), pool, journal, workflow, inputs, options, watch)
            for url in servers
        ]
        for worker in workers:
            # what an earlier run sent to a server is asked for there first
            sent = {job.prompt_id for job in todo if journal.records[job.id].server == worker.client.url}
            worker.jobs = {job.id: job for job in pool.claim(sent)}
        tasks = [asyncio.ensure_future(worker.run()) for worker in workers]
        try:
            reasons = await asyncio.gather(*tasks)
            return reasons if pool.unfinished else []
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if pool.unfinished:
                await asyncio.gather(*(worker.stop() for worker in workers))
                journal.write_index()
