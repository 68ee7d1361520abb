"""Benchmarks: `python -m experiments.benchmark {act,update,rollout,…,all}`.

Each suite is a module with a function `cases(machine)` that measures and yields one JSON-serializable dict per case.
"""
