"""A sweep of several seeds beside the same runs one after the other, with compilation and evaluation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from relic_jax.experiments.benchmark.measure import Machine

SEEDS = 8
STEPS = 300_000
PRESET = "darkroom-dpt"


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield one case: the wall-clock time of the sweep as a fraction of that of the separate commands."""
    yield case(SEEDS, ("--total-steps", str(STEPS)))


def case(seeds: int, options: tuple[str, ...]) -> dict[str, Any]:
    """Measure both ways with an empty compilation cache each, which the separate commands then share.

    Args:
        seeds: Number of runs.
        options: Options of each run of `PRESET`.
    """
    with tempfile.TemporaryDirectory() as folder:
        alone = sum(_seconds(folder, "alone", "train", PRESET, "--seed", str(seed), *options) for seed in range(seeds))
        together = _seconds(folder, "together", "sweep", PRESET, "--seeds", str(seeds), *options)
    return {
        "name": f"sweep {PRESET} {seeds} seeds beside {seeds} runs",
        "seconds": together,
        "seconds_alone": alone,
        "share": {"of the time of separate runs": together / alone},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _seconds(folder: str, name: str, *arguments: str) -> float:
    """Return the wall-clock seconds of a command."""
    command = [sys.executable, "-m", "relic_jax.experiments.cli", *arguments, "--runs", f"{folder}/{name}"]
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache-{name}", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    start = time.perf_counter()
    subprocess.run(command, env={**os.environ, **cache}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
