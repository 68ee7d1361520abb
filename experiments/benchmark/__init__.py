"""Benchmarks that anyone can rerun: `python -m experiments.benchmark {act,update,rollout,…,all}`.

Every suite's `cases(machine)` measures, and yields one JSON-able dict per case.
"""
