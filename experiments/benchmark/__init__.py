"""Benchmarks: every module has `cases()`, which measures and yields one JSON-able dict per case."""
