"""navix (Pignatelli et al. 2024, arXiv 2407.19396), MiniGrid in JAX: `navix:Navix-DoorKey-5x5-v0`.

The adapter uses `_step`, since `step` resets at the step after the end of an episode. The step types are 0 transition,
1 TRUNCATION and 2 TERMINATION, unlike the first, middle and last of dm_env and XLand-MiniGrid.
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
"""Default time limit in steps: that of navix."""
CELL = (11, 6, 4)
"""Number of categories of a cell of the view: kinds, colors, and states or directions."""


def make(env: EnvConfig, workers: WorkerConfig) -> Navix:
    """Make the environment `navix:ID`.

    Args:
        env: Its name, and `horizon`, the steps of the longest episode; None: 100, the limit of navix.
        workers: Not used.

    Raises:
        ConfigError: navix is missing or has no such environment.
    """
    del workers
    name, horizon = env.name, env.horizon
    check_known(name, PREFIX, load("navix", PREFIX, name).registry())
    return Navix(name, name.removeprefix(f"{PREFIX}:"), LIMIT if horizon is None else horizon)


@functools.cache
def _made(id: str, horizon: int) -> Any:
    suite = load("navix", PREFIX, f"{PREFIX}:{id}")
    with jax.ensure_compile_time_eval():  # the cached object must not hold tracers
        return suite.make(id, max_steps=horizon, observation_fn=suite.observations.symbolic_first_person)


@dataclasses.dataclass(frozen=True)
class Navix(Suite):
    """An environment of navix. The task is the seed of its layout.

    Observations are MiniGrid's view of 7×7 cells in front of the agent, each one-hot in kind, color and state,
    uint8 [1029].
    """

    ends_in_time = True

    @property
    def navix(self) -> Any:
        """The environment of navix."""
        return _made(self.id, self.horizon)

    @property
    def action_space(self) -> ActionSpace:
        """The actions of navix."""
        return action_space(self.navix.action_space, self.name)

    def begin(self, key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
        """Reset the environment of navix, whose state is a time step."""
        del task
        timestep = self.navix.reset(key)
        return timestep, timestep.observation

    def reseeded(self, key: jax.Array, inner: PyTree) -> PyTree:
        """Replace the key in the state, from which navix draws the randomness of steps."""
        return inner.replace(state=inner.state.replace(key=key))

    def advance(self, key: jax.Array, inner: PyTree, action: jax.Array, task: PyTree) -> Reply:
        """Take a step of navix without its reset."""
        del key, task
        timestep = self.navix._step(inner, action)
        return Reply(
            timestep, timestep.observation, timestep.reward, timestep.is_termination(), timestep.is_truncation()
        )

    def encode(self, inner: PyTree, seen: PyTree) -> jax.Array:
        """Encode each cell as one-hot vectors."""
        del inner
        return one_hots(seen.reshape(-1), CELL * (seen.size // len(CELL)))
