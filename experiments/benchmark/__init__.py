"""Benchmarks that anyone can rerun: `python -m experiments.benchmark {act,update,refresh,rollout,train,env,all}`.

Every suite's `cases(machine)` measures, and yields one JSON-able dict per case.
"""
