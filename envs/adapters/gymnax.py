"""gymnax (Lange 2022): `gymnax:CartPole-v1` and its other environments.

The adapter uses `step_env` and `reset_env`, since `step` resets automatically. `step_env` has no time limit.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.base import ActionSpace, Image, PyTree
from relic_jax.envs.adapters.suite import Reply, Suite, action_space, check_known, finite_range, load

PREFIX = "gymnax"
IMAGES = (
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Pong-misc",
)
"""Environments whose observation is an image with values in [0, 1]."""


def make(env: EnvConfig, workers: WorkerConfig) -> Gymnax:
    """Make the environment `gymnax:ID`.

    Args:
        env: Its name, and `horizon`, the steps of the longest episode; None: the limit of gymnax.
        workers: Not used.

    Raises:
        ConfigError: gymnax is missing or has no such environment.
    """
    del workers
    name, horizon = env.name, env.horizon
    suite, id = load("gymnax", PREFIX, name), name.removeprefix(f"{PREFIX}:")
    check_known(name, PREFIX, suite.registered_envs)
    try:
        limit = int(_made(id)[1].max_steps_in_episode)
    except OSError as error:
        raise ConfigError(f"env {name!r} downloads data, which failed: {error}") from None
    return Gymnax(name, id, limit if horizon is None else horizon)


@functools.cache
def _made(id: str) -> tuple[Any, Any]:
    with jax.ensure_compile_time_eval():  # the cached object must not hold tracers
        return load("gymnax", PREFIX, f"{PREFIX}:{id}").make(id)


@dataclasses.dataclass(frozen=True)
class Gymnax(Suite):
    """An environment of gymnax. Tasks are seeds."""

    ends_in_time = True

    @property
    def params(self) -> Any:
        """The parameters of gymnax, with the time limit `horizon`."""
        return _made(self.id)[1].replace(max_steps_in_episode=self.horizon)

    @property
    def action_space(self) -> ActionSpace:
        """The actions of gymnax."""
        return action_space(_made(self.id)[0].action_space(self.params), self.name)

    @property
    def observation_spec(self) -> PyTree:
        """Shape and dtype of `encode`; an `Image` for IMAGES."""
        spec = super().observation_spec
        return Image(spec.shape, spec.dtype) if self.id in IMAGES else spec

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """The bounds of gymnax if they are finite. None for IMAGES, whose values are in [0, 1]."""
        space, spec = _made(self.id)[0].observation_space(self.params), self.observation_spec
        if not isinstance(spec, jax.ShapeDtypeStruct) or isinstance(spec, Image):
            return None
        if type(space).__name__ == "Discrete":
            return np.zeros(spec.shape, np.float32), np.full(spec.shape, space.n - 1, np.float32)
        return finite_range(space.low, space.high, spec.shape)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """Start an episode by `reset_env`."""
        del task
        seen, inner = _made(self.id)[0].reset_env(key, self.params)
        return inner, seen

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """Take a step by `step_env` and `is_truncated`."""
        del task
        env, params = _made(self.id)[0], self.params
        seen, inner, reward, terminated, _ = env.step_env(key, inner, action, params)
        return Reply(inner, seen, jnp.asarray(reward), terminated, env.is_truncated(inner, params))
