"""Gymnasium environments by their id, in worker processes: `gym:CartPole-v1`, or `gym:package:Id-v0`."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from relic_jax.bridge.pool import Batch, Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import Spec
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment, action_space_of
from relic_jax.runtime import read_json
from relic_jax.validation import shown

log = logging.getLogger("relic_jax.envs")
ENTRY = "relic_jax.bridge.gym:GymEnvironment"
SEEDS = {"train": range(80), "test": range(80, 100)}
"""Default tasks by split: seeds. Every episode of a task is reset with its seed."""
CHECKED_TASKS, CHECKED_STEPS, CHECK_SECONDS = 8, 5, 2.0
"""Tasks, steps and seconds of the check that a seed decides the task; at least one task is checked."""


@dataclasses.dataclass(frozen=True)
class GymOptions:
    """Options of `gym:ID`."""

    dataset: str | None = None
    """JSON file with the tasks of both splits, {"train": [task, …], "test": [task, …]}; a task is an object of `seed`,
    `options` and `arguments`. None: 80 training and 20 held-out seeds."""
    wrappers: str = ""
    """Wrappers that the workers put around the environment, from left to right: MODULE:NAME, separated by commas."""
    text: Literal["omit", "words"] = "omit"
    """How observations that are texts are read. omit: not at all; words: as the set of their words."""


def make(env: EnvConfig, workers: WorkerConfig) -> HostEnvironment:
    """Return the gymnasium environment of a name `gym:ID`.

    A worker process is started for its spec, and to check that a seed decides the task.

    Raises:
        ConfigError: The environment cannot be made or is not supported, or seeds do not decide its tasks.
    """
    id, own = env.name.removeprefix("gym:"), env.typed(GymOptions)
    splits = {split: [{"seed": seed} for seed in seeds] for split, seeds in SEEDS.items()}
    if own.dataset is not None:
        splits = read_tasks(own.dataset)
    options: dict[str, Any] = {"id": id, "horizon": env.horizon}
    if own.wrappers:
        options["wrappers"] = [name.strip() for name in own.wrappers.split(",")]
    if own.text != "omit":
        options["text"] = own.text
    spec = _announced(id, options, workers, splits)
    note = ""
    if spec.left_out:
        note = f"without the text {', '.join(spec.left_out)} (--env.text words reads it)"
        log.warning("env 'gym:%s': the observation is read %s", id, note)
    return HostEnvironment(f"gym:{id}", ENTRY, options, spec, splits, host=workers, note=note)


def _announced(id: str, options: dict[str, Any], host: WorkerConfig, splits: dict[str, list[Any]]) -> Spec:
    config = PoolConfig(
        ENTRY,
        options,
        workers=1,
        groups=1,
        python=host.python or sys.executable,
        start_timeout=host.start_timeout,
        step_timeout=host.step_timeout,
    )
    try:
        with Pool(config) as pool:
            check_seed(f"gym:{id}", pool, splits)
            return pool.spec
    except PoolError as error:
        raise ConfigError(f"env is 'gym:{id}'; allowed: gym: and an id of gymnasium's; {error}") from None


def check_seed(name: str, pool: Pool, splits: dict[str, list[Any]]) -> None:
    """Check that two episodes of one task with a seed are equal, because the seed has to decide the task.

    Compares observations, rewards and ends of the first steps under the same actions. Tasks without a seed are skipped.

    Args:
        name: Name of the environment, for errors.
        pool: Workers with a single environment.
        splits: Tasks by split.

    Raises:
        ConfigError: Two episodes differ.
        PoolError: A worker failed.
    """
    seeded = [task for tasks in splits.values() for task in tasks if "seed" in task]
    until = time.monotonic() + CHECK_SECONDS
    for number, task in enumerate(seeded[:CHECKED_TASKS]):
        if number and time.monotonic() > until:
            break
        openings = (_opening(pool, task, trial) for trial in (0, 1))
        for step, (one, other) in enumerate(zip(*openings, strict=False)):
            different = [part for part in one if not np.array_equal(one[part], other[part])]
            if different:
                when = f"after {step} steps" if step else "at reset"
                raise ConfigError(
                    f"env {name!r} was reset twice with seed {task['seed']} and differs {when} in {different[0]}: the "
                    "seed does not decide the task; allowed: an environment, and wrappers, that pass `seed` on and "
                    "draw from np_random, or tasks without seeds (env.dataset)"
                )


def _opening(pool: Pool, task: Any, trial: int) -> list[dict[str, np.ndarray]]:
    """Return the named arrays of each step of the first episode of a trial with seed `trial`.

    Empty if a step was lost because a worker failed.
    """
    batch, random = pool.reset([task], [trial]), np.random.default_rng(0)
    actions = action_space_of(pool.spec, pool.spec.name)
    found = [{f"observation {name!r}": x for name, x in batch.observation.items()} | _mask(batch)]
    for _ in range(CHECKED_STEPS):
        if not batch.valid.all():
            return []
        pool.send(actions.draw(random, 1, batch.legal))
        batch = pool.receive()
        found.append(_seen(batch))
        if (batch.terminated | batch.truncated).any():
            break
    return found if batch.valid.all() else []


def _seen(batch: Batch) -> dict[str, np.ndarray]:
    """Return the observation after a step, its reward and whether the episode ended, by name."""
    ended = (batch.terminated | batch.truncated).any()
    arrays = batch.final if ended and batch.final is not None else batch.observation
    found = {f"observation {name!r}": x for name, x in arrays.items()}
    ends = np.stack([batch.terminated, batch.truncated])
    return {**found, "the reward": batch.reward, "its end": ends} | ({} if ended else _mask(batch))


def _mask(batch: Batch) -> dict[str, np.ndarray]:
    return {} if batch.legal is None else {"the mask of legal actions": batch.legal}


def read_tasks(path: str) -> dict[str, list[Any]]:
    """Return the tasks of both splits from a JSON file, see `relic_jax.bridge.gym`. Raises ConfigError."""
    allowed = 'a JSON file {"train": [task, …], "test": [task, …]}, each task an object of: seed, options, arguments'
    try:
        data = read_json(Path(path))
        splits = {split: list(data[split]) for split in ("train", "test")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"env.dataset is {path!r}; allowed: {allowed} ({reason})") from None
    for task in (task for tasks in splits.values() for task in tasks):
        if not isinstance(task, dict) or set(task) - {"seed", "options", "arguments"}:
            raise ConfigError(f"env.dataset is {path!r} with the task {shown(task)}; allowed: {allowed}")
        for name in ("options", "arguments"):
            if not isinstance(task.get(name, {}), dict):
                raise ConfigError(f"env.dataset is {path!r} with {name} {shown(task[name])}; allowed: an object")
        seed = task.get("seed", 0)
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise ConfigError(f"env.dataset is {path!r} with the seed {shown(seed)}; allowed: integers 0 … 2^31 − 1")
    if not all(splits.values()):
        raise ConfigError(f"env.dataset is {path!r} with an empty split; allowed: {allowed}")
    return splits
