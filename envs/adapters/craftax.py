"""Craftax and Craftax-Classic (Matthews et al. 2024, arXiv 2402.16801), symbolic: `craftax:Craftax-Symbolic-v1`.

The variants without auto-reset are used. They report one `done`; here a lack of time is a truncation.
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
"""Steps of the longest episode, unless asked otherwise: the limit of Craftax-Classic. Craftax's own is 100,000."""


def make(env: EnvConfig, workers: WorkerConfig) -> Craftax:
    """The environment `craftax:ID`. env.horizon: steps of the longest episode; None: 10,000. Raises ConfigError."""
    del workers
    name, horizon = env.name, env.horizon
    load("craftax", PREFIX, name)
    check_known(name, PREFIX, IDS)
    return Craftax(name, name.removeprefix(f"{PREFIX}:"), LIMIT if horizon is None else horizon)


@functools.cache
def _made(id: str) -> Any:
    module = load("craftax.craftax_env", PREFIX, f"{PREFIX}:{id}")
    with jax.ensure_compile_time_eval():  # it is kept, so it must not hold what belongs to a trace
        return module.make_craftax_env_from_name(id, auto_reset=False)


@dataclasses.dataclass(frozen=True)
class Craftax(Suite):
    """A world of Craftax. The task is its seed: every episode of a trial opens in the same world.

    Observation: float32 vector in 0 … 1.
    """

    ends_in_time = True

    @property
    def reference_episodes(self) -> int:
        """Few: worlds are large and episodes long."""
        return 16

    @property
    def params(self) -> Any:
        """Craftax's parameters, with our time limit."""
        return _made(self.id).default_params.replace(max_timesteps=self.horizon)

    @property
    def action_space(self) -> ActionSpace:
        """Craftax's: 43 actions, 17 in Classic."""
        return action_space(_made(self.id).action_space(self.params), self.name)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """`reset_env`: generates a world."""
        del task
        seen, inner = _made(self.id).reset_env(key, self.params)
        return inner, seen

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """`step_env`; terminated where it would be over without a time limit too."""
        del task
        env = _made(self.id)
        seen, inner, reward, done, _ = env.step_env(key, inner, action, self.params)
        terminated = env.is_terminal(inner, self.params.replace(max_timesteps=2**31 - 1))
        return Reply(inner, seen, reward, terminated, done)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """Alive when time was up."""
        del episode_return
        return timestep.truncated
