"""Craftax and Craftax-Classic (Matthews et al. 2024, arXiv 2402.16801), symbolic: `craftax:Craftax-Symbolic-v1`.

The adapter uses the variants without auto-reset. They report a single `done`; the adapter separates truncation from
termination.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from relic_jax.config import EnvConfig, WorkerConfig
from relic_jax.environment.base import ActionSpace, PyTree, TimeStep
from relic_jax.envs.adapters.suite import Reply, Suite, action_space, check_known, load

PREFIX = "craftax"
IDS = ("Craftax-Symbolic-v1", "Craftax-Classic-Symbolic-v1")
LIMIT = 10_000
"""Default time limit in steps: that of Craftax-Classic. The limit of Craftax is 100,000."""


def make(env: EnvConfig, workers: WorkerConfig) -> Craftax:
    """Make the environment `craftax:ID`.

    Args:
        env: Its name, and `horizon`, the steps of the longest episode; None: 10,000.
        workers: Not used.

    Raises:
        ConfigError: Craftax is missing or has no such environment.
    """
    del workers
    name, horizon = env.name, env.horizon
    load("craftax", PREFIX, name)
    check_known(name, PREFIX, IDS)
    return Craftax(name, name.removeprefix(f"{PREFIX}:"), LIMIT if horizon is None else horizon)


@functools.cache
def _made(id: str) -> Any:
    module = load("craftax.craftax_env", PREFIX, f"{PREFIX}:{id}")
    with jax.ensure_compile_time_eval():  # the cached object must not hold tracers
        return module.make_craftax_env_from_name(id, auto_reset=False)


@dataclasses.dataclass(frozen=True)
class Craftax(Suite):
    """A world of Craftax. The task is its seed: all episodes of a trial start in the same world.

    Observations are float32 vectors in [0, 1].
    """

    ends_in_time = True

    @property
    def reference_episodes(self) -> int:
        """Episodes of the reference returns: few, since worlds are large and episodes long."""
        return 16

    @property
    def params(self) -> Any:
        """The parameters of Craftax, with the time limit `horizon`."""
        return _made(self.id).default_params.replace(max_timesteps=self.horizon)

    @property
    def action_space(self) -> ActionSpace:
        """The actions of Craftax: 43, or 17 in Classic."""
        return action_space(_made(self.id).action_space(self.params), self.name)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """Generate a world by `reset_env`."""
        del task
        seen, inner = _made(self.id).reset_env(key, self.params)
        return inner, seen

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """Take a step by `step_env`. It terminates if the episode would end without a time limit too."""
        del task
        env = _made(self.id)
        seen, inner, reward, done, _ = env.step_env(key, inner, action, self.params)
        terminated = env.is_terminal(inner, self.params.replace(max_timesteps=2**31 - 1))
        return Reply(inner, seen, reward, terminated, done)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Return whether the agent was alive at the time limit."""
        del episode_return
        return timestep.truncated
