"""navix (Pignatelli et al. 2024, arXiv 2407.19396), MiniGrid in JAX: `navix:Navix-DoorKey-5x5-v0`.

Its `step` resets at the step after an episode's end, so `_step` is used. Its step types are 0 transition, 1 TRUNCATION,
2 TERMINATION, unlike dm_env's first, middle and last, which XLand-MiniGrid has.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from relic_jax.config import EnvConfig, WorkerConfig
from relic_jax.environment.base import ActionSpace, PyTree
from relic_jax.envs.adapters.suite import Reply, Suite, action_space, check_known, load, one_hots

PREFIX = "navix"
LIMIT = 100
"""Steps of the longest episode, unless asked otherwise: navix's own."""
CELL = (11, 6, 4)
"""Categories of a cell of the view: kinds of things, colours, states or directions."""


def make(env: EnvConfig, workers: WorkerConfig) -> Navix:
    """The environment `navix:ID`. env.horizon: steps of an episode; None: navix's own, 100. Raises ConfigError."""
    del workers
    name, horizon = env.name, env.horizon
    check_known(name, PREFIX, load("navix", PREFIX, name).registry())
    return Navix(name, name.removeprefix(f"{PREFIX}:"), LIMIT if horizon is None else horizon)


@functools.cache
def _made(id: str, horizon: int) -> Any:
    suite = load("navix", PREFIX, f"{PREFIX}:{id}")
    with jax.ensure_compile_time_eval():  # it is kept, so it must not hold what belongs to a trace
        return suite.make(id, max_steps=horizon, observation_fn=suite.observations.symbolic_first_person)


@dataclasses.dataclass(frozen=True)
class Navix(Suite):
    """An environment of navix. The task is the seed of its layout.

    Observation: MiniGrid's view of 7×7 cells in front of the agent, each one-hot in its kind, colour and state;
    uint8 [1029].
    """

    ends_in_time = True

    @property
    def navix(self) -> Any:
        """navix's environment."""
        return _made(self.id, self.horizon)

    @property
    def action_space(self) -> ActionSpace:
        """navix's."""
        return action_space(self.navix.action_space, self.name)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """navix's reset: its state is a time step."""
        del task
        timestep = self.navix.reset(key)
        return timestep, timestep.observation

    def reseeded(self, key: jax.Array, inner: PyTree) -> PyTree:
        """navix draws what happens in steps from a key in its state."""
        return inner.replace(state=inner.state.replace(key=key))

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """navix's step without its reset."""
        del key, task
        timestep = self.navix._step(inner, action)
        return Reply(
            timestep, timestep.observation, timestep.reward, timestep.is_termination(), timestep.is_truncation()
        )

    def encode(self, inner: PyTree, seen: PyTree) -> jax.Array:
        """One-hot."""
        del inner
        return one_hots(seen.reshape(-1), CELL * (seen.size // len(CELL)))
