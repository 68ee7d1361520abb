"""MuJoCo Playground (Zakka et al. 2025, arXiv 2502.08844): `playground:CartpoleBalance`.

Its environments neither reset themselves nor know of a time limit, both are wrappers of its own; `done` is a float.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import EnvConfig, WorkerConfig
from relic_jax.environment.base import Box, PyTree
from relic_jax.envs.adapters.suite import Reply, Suite, check_known, load

PREFIX = "playground"


def make(env: EnvConfig, workers: WorkerConfig) -> Playground:
    """The environment `playground:ID`. env.horizon: steps of the longest episode; None: its own. Raises ConfigError."""
    del workers
    name, horizon = env.name, env.horizon
    suite, id = load("mujoco_playground", PREFIX, name).registry, name.removeprefix(f"{PREFIX}:")
    check_known(name, PREFIX, suite.ALL_ENVS)
    return Playground(name, id, int(suite.get_default_config(id).episode_length) if horizon is None else horizon)


@functools.cache
def _made(id: str) -> Any:
    suite = load("mujoco_playground", PREFIX, f"{PREFIX}:{id}").registry
    overrides = {"impl": "jax"} if "impl" in suite.get_default_config(id) else None  # the other one needs an NVIDIA GPU
    with jax.ensure_compile_time_eval():  # it is kept, so it must not hold what belongs to a trace
        return suite.load(id, config_overrides=overrides)


@dataclasses.dataclass(frozen=True)
class Playground(Suite):
    """An environment of MuJoCo Playground, on MJX. Tasks are seeds.

    Observation: its own; of those with a privileged one, what is not privileged.
    """

    ends_in_time = True

    @property
    def own(self) -> Any:
        """The suite's environment."""
        return _made(self.id)

    @property
    def action_space(self) -> Box:
        """Its actuators' inputs, each in −1 … 1."""
        n = int(self.own.action_size)
        return Box((-1.0,) * n, (1.0,) * n)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """Its reset, with the steps since."""
        del task
        state = self.own.reset(key)
        return (state, jnp.zeros((), jnp.int32)), _seen(state)

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """Its step, and our time limit."""
        del key, task
        state, time = self.own.step(inner[0], action), inner[1] + 1
        return Reply((state, time), _seen(state), state.reward, state.done > 0, time >= self.horizon)


def _seen(state: Any) -> PyTree:
    return state.obs["state"] if isinstance(state.obs, dict) else state.obs
