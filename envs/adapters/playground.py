"""MuJoCo Playground (Zakka et al. 2025, arXiv 2502.08844): `playground:CartpoleBalance`.

The environments neither reset automatically nor have a time limit: the suite has wrappers for both. `done` is a float.
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
    """Make the environment `playground:ID`.

    Args:
        env: Its name, and `horizon`, the steps of the longest episode; None: the limit of its config.
        workers: Not used.

    Raises:
        ConfigError: The suite is missing or has no such environment.
    """
    del workers
    name, horizon = env.name, env.horizon
    suite, id = load("mujoco_playground", PREFIX, name).registry, name.removeprefix(f"{PREFIX}:")
    check_known(name, PREFIX, suite.ALL_ENVS)
    return Playground(name, id, int(suite.get_default_config(id).episode_length) if horizon is None else horizon)


@functools.cache
def _made(id: str) -> Any:
    suite = load("mujoco_playground", PREFIX, f"{PREFIX}:{id}").registry
    overrides = {"impl": "jax"} if "impl" in suite.get_default_config(id) else None  # others need an NVIDIA GPU
    with jax.ensure_compile_time_eval():  # the cached object must not hold tracers
        return suite.load(id, config_overrides=overrides)


@dataclasses.dataclass(frozen=True)
class Playground(Suite):
    """An environment of MuJoCo Playground, on MJX. Tasks are seeds.

    Privileged observations are left out.
    """

    ends_in_time = True

    @property
    def playground(self) -> Any:
        """The environment of the suite."""
        return _made(self.id)

    @property
    def action_space(self) -> Box:
        """The inputs of the actuators, each in [−1, 1]."""
        n = int(self.playground.action_size)
        return Box((-1.0,) * n, (1.0,) * n)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """Reset the environment. The state includes the steps since then."""
        del task
        state = self.playground.reset(key)
        return (state, jnp.zeros((), jnp.int32)), _observation(state)

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """Take a step and apply the time limit."""
        del key, task
        state, time = self.playground.step(inner[0], action), inner[1] + 1
        return Reply((state, time), _observation(state), state.reward, state.done > 0, time >= self.horizon)


def _observation(state: Any) -> PyTree:
    """Return the observation without its privileged part."""
    return state.obs["state"] if isinstance(state.obs, dict) else state.obs
