"""Measure the times of the parts of training with workers: the policy, the workers, copies and the update."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from relic_jax.experiments.run import env_of
from relic_jax.experiments.training import parse_train
from relic_jax.rl.host import HostRunner
from relic_jax.rl.parallel import initial_state
from relic_jax.rl.train import prepare


class _Timed:
    """A function that adds the time until its results are computed to `seconds[name]`."""

    def __init__(self, function: Any, seconds: dict[str, float], name: str) -> None:
        self._function, self._seconds, self._name = function, seconds, name

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = jax.block_until_ready(self._function(*arguments))
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - start
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def training_times(arguments: list[str], segments: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the mean milliseconds per policy step of the parts of training, and the environment steps per second.

    The first segment is not measured, because it compiles.

    Args:
        arguments: Preset and options of `relic-jax train`.
        segments: Number of segments to measure.
        report: Called with messages about the progress.
    """
    config = parse_train(arguments)[0].config
    setup = prepare(config, env_of(config))
    seconds: dict[str, float] = {}
    with HostRunner(setup) as runner:
        report("workers started")
        state: Any = initial_state(setup)
        state, _ = jax.block_until_ready(runner(state))
        report("compiled")
        pool: Any = runner._trials.pool
        changes = [
            (runner, "_actor", "policy"),
            (runner, "_learn", "update"),
            (pool, "ready", "wait for the workers"),
            (pool, "receive", "copy the answers"),
            (pool, "send", "send the actions"),
        ]
        for owner, attribute, name in changes:
            setattr(owner, attribute, _Timed(getattr(owner, attribute), seconds, name))
        start = time.perf_counter()
        for _ in range(segments):
            state, _ = jax.block_until_ready(runner(state))
        total = time.perf_counter() - start
    steps, environments = segments * config.trial.segment, config.trial.environments
    seconds["rest of the loop"] = total - sum(seconds.values())
    milliseconds = {name: 1000 * value / steps for name, value in seconds.items()}
    return {
        "environments": environments,
        "segment": config.trial.segment,
        "parameters": int(sum(np.size(x) for x in jax.tree.leaves(state.params))),
        "rate": environments * steps / total,
        "milliseconds": milliseconds,
    }
