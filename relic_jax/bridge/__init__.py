"""Simulators in their own processes and interpreters, which exchange arrays with the learner through shared memory.

`pool.Pool` is the learner's side. `worker`, `protocol` and `gym` are the worker's side: they need only numpy and the
simulator and run on Python 3.8 and newer. No module imports jax, and nothing is pickled.
"""

from __future__ import annotations
