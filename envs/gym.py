"""Any gymnasium environment by its id, in worker processes: `gym:CartPole-v1`, or `gym:package:Id-v0`."""

from __future__ import annotations

import json
import sys
from typing import Any

from envs.host import HostEnvironment
from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import Spec
from relic_jax.config import ConfigError, HostConfig

ENTRY = "relic_jax.bridge.gym:GymEnvironment"
SEEDS = {"train": range(80), "test": range(80, 100)}
"""The default tasks: what the environment draws from a seed, again in every episode."""


def make(id: str, host: HostConfig | None = None) -> HostEnvironment:
    """The environment with gymnasium's `id`; a worker is started to ask for its spec. Raises ConfigError."""
    host = host or HostConfig()
    splits = {split: [{"seed": seed} for seed in seeds] for split, seeds in SEEDS.items()}
    if host.dataset is not None:
        splits = read_tasks(host.dataset)
    options = {"id": id, "horizon": host.horizon}
    spec = _announced(id, options, host)
    images = [name for name, array in spec.observation.items() if array.dtype == "uint8" and len(array.shape) == 3]
    return HostEnvironment(f"gym:{id}", ENTRY, options, spec, splits, image=images[0] if images else None, host=host)


def _announced(id: str, options: dict[str, Any], host: HostConfig) -> Spec:
    python = host.python or sys.executable
    config = PoolConfig(ENTRY, options, workers=1, groups=1, python=python, start_timeout=host.start_timeout)
    try:
        with Pool(config) as pool:
            return pool.spec
    except PoolError as error:
        raise ConfigError(f"env is 'gym:{id}'; allowed: gym: and an id of gymnasium's; {error}") from None


def read_tasks(path: str) -> dict[str, list[Any]]:
    """Tasks of both splits from a JSON file, see `relic_jax.bridge.gym`. Raises ConfigError."""
    allowed = 'a JSON file {"train": [task, …], "test": [task, …]}, each task an object of: seed, options, arguments'
    try:
        with open(path) as file:
            data = json.load(file)
        splits = {split: list(data[split]) for split in ("train", "test")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"host.dataset is {path!r}; allowed: {allowed} ({reason})") from None
    for task in (task for tasks in splits.values() for task in tasks):
        if not isinstance(task, dict) or set(task) - {"seed", "options", "arguments"}:
            raise ConfigError(f"host.dataset is {path!r} with the task {task!r}; allowed: {allowed}")
    if not all(splits.values()):
        raise ConfigError(f"host.dataset is {path!r} with an empty split; allowed: {allowed}")
    return splits
