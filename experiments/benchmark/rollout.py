"""Speed of collecting a segment: the policy with its environment, and the environment alone."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax

from relic_jax.experiments.benchmark.measure import Machine, program, timed
from relic_jax.experiments.benchmark.models import benchmark_setup, state_with_context
from relic_jax.experiments.presets import TINY
from relic_jax.rl.rollout import Collected, collect
from relic_jax.rl.state import Setup, TrainState

SEGMENT = 256


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield cases of the tiny model in Darkroom with a context of 2k steps and few and many environments."""
    del machine
    for environments in (8, 64):
        yield case(environments)


def case(environments: int) -> dict[str, Any]:
    """Measure one case."""
    setup = benchmark_setup(environments, 4096, SEGMENT, TINY)
    state = state_with_context(setup, 2048)
    whole, alone = (program(jax.jit(functools.partial(run, setup)), state) for run in (act, step))
    timing, environment = timed(lambda: whole(state)), timed(lambda: alone(state))
    return {
        "name": f"rollout/darkroom/environments{environments}/context2048",
        "rate": environments * SEGMENT / timing.wall,
        "unit": "environment steps/s",
        "environment_alone": environments * SEGMENT / environment.wall,
        "share_of_policy": 1 - environment.cpu / timing.cpu,
        **whole.cost,
    }


def act(setup: Setup, state: TrainState) -> Collected:
    """Collect one segment."""
    return collect(setup, state.params, state.trial, state.memory, jax.random.key(0))


def step(setup: Setup, state: TrainState) -> Any:
    """Take the same number of environment steps with random actions."""

    def one(trial: Any, key: jax.Array) -> tuple[Any, Any]:
        action_key, env_key = jax.random.split(key)
        space = setup.policy.action_space
        actions = jax.vmap(space.sample)(jax.random.split(action_key, len(trial.first)))
        return setup.trials.step(env_key, trial, space.from_env(actions))

    return jax.lax.scan(one, state.trial, jax.random.split(jax.random.key(0), SEGMENT))
