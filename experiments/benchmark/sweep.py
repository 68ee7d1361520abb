"""Compare a sweep of several seeds with the same runs one after the other, including compilation and evaluation.

`python -m experiments.benchmark sweep --out sweep.json`; `--seeds 2 --steps 32000` makes it a short test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from relic_jax.experiments.benchmark.measure import Machine

PRESET = "darkroom-dpt"
TARGET = 0.6
"""Largest ratio of the time of a sweep of 8 runs of 300,000 steps to that of separate commands, on 2 cores."""


def cases(machine: Machine, seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """Yield one case: the wall-clock time of the sweep as a fraction of that of the separate commands."""
    yield case(seeds, steps)


def case(seeds: int, steps: int) -> dict[str, Any]:
    """Measure both ways with an empty compilation cache each, which the separate commands then share.

    Args:
        seeds: Number of runs.
        steps: Environment steps of each run of `PRESET`.
    """
    options = ("--total-steps", str(steps))
    with tempfile.TemporaryDirectory() as folder:
        before, load = _cpu_seconds(), _load()
        alone = [_seconds(folder, "alone", "train", PRESET, "--seed", str(seed), *options) for seed in range(seeds)]
        between = _cpu_seconds()
        together = _seconds(folder, "together", "sweep", PRESET, "--seeds", str(seeds), *options)
        after = _cpu_seconds()
    return {
        "name": f"sweep {PRESET} {seeds} seeds beside {seeds} runs of {steps:,} steps",
        "seconds": together,
        "seconds_alone": sum(alone),
        "seconds_of_each": alone,
        "cpu_seconds": after - between,
        "cpu_seconds_alone": between - before,
        "share": {"of the time of separate runs": together / sum(alone)},
        "target": TARGET,
        "load": {"before": load, "after": _load()},
    }


def _cpu_seconds() -> float:
    """Return the CPU seconds of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _load() -> list[float] | None:
    """Return the load averages of the machine. Other programs slow the two sides of the comparison down unequally."""
    with contextlib.suppress(AttributeError, OSError):
        return list(os.getloadavg())
    return None


def _seconds(folder: str, name: str, *arguments: str) -> float:
    """Return the wall-clock seconds of a command."""
    command = [sys.executable, "-m", "relic_jax.experiments.cli", *arguments, "--runs", f"{folder}/{name}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache-{name}", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    start = time.perf_counter()
    subprocess.run(command, env={**os.environ, **cache}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
