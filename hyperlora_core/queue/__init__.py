"""Batches through ComfyUI's API: any API-format workflow for every person, prompt and seed, on one or several servers.

workflow.py   the workflow's file, and the inputs that vary
jobs.py       the pictures to be made: what they are called, and the ids by which servers know them
journal.py    what is finished, so that the same command goes on; index.csv
client.py     one server over HTTP and WebSocket
results.py    what a server's history says of a job: its files, its error, the similarity
pool.py       the jobs that no server has
watch.py      conduct and progress
worker.py     one server's share: keep it busy, fetch what it makes, survive its restart
run.py        all servers together, and a clean end

Imports neither torch nor anything of the library that does.
"""
