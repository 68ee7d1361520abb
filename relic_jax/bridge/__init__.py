"""Simulators in processes and interpreters of their own, which exchange arrays with the learner through shared memory.

`pool.Pool` is the learner's side; `worker`, `protocol`, `gym` and `probes` are the worker's side: they need numpy and
the simulator only and run on Python 3.8 and newer. Nothing here imports jax, nothing is ever pickled.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relic_jax.bridge.pool import Batch, Pool, PoolConfig, PoolError

__all__ = ["Batch", "Pool", "PoolConfig", "PoolError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("relic_jax.bridge.pool"), name)
