"""Measurements: each module has `cases()`, and runs as `python -m experiments.benchmark.NAME --json OUT`."""
