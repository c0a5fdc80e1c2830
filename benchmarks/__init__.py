"""Measurements: how fast (`python -m benchmarks`, docs/benchmarks.md), and how good (the scripts beside this file)."""
