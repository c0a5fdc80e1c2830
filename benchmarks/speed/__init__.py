"""How long each step takes, and how long it would take at the machine's limit. Run by `python -m benchmarks`."""
