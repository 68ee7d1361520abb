"""Action repeat: each action lasts several steps of an environment."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.config import ConfigError
from relic_jax.environment.base import ActionSpace, Environment, PyTree, Split, TimeStep, TrialRecord, one_end
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.trials import select


def repeated(env: Environment, times: int) -> Environment:
    """`env` with each action lasting `times` steps. Raises ConfigError where that cannot be."""
    if times == 1:
        return env
    allowed = "1 or more" if times < 1 else "1 for environments in worker processes"
    if times < 1 or isinstance(env, HostEnvironment):
        raise ConfigError(f"trial.action_repeat is {times}; allowed: {allowed}")
    return ActionRepeat(env, times)


@dataclasses.dataclass(frozen=True)
class ActionRepeat(Environment):
    """A step is up to `times` steps of `env` with one action: fewer where the episode ends, or where the action is no
    longer legal. Rewards are summed.

    Observation, terminated and truncated are those of the last step that was taken.
    """

    env: Environment
    times: int

    @property
    def name(self) -> str:  # type: ignore[override]
        """The environment's."""
        return self.env.name

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """The longest episode, in steps of the policy."""
        return -(-self.env.horizon // self.times)

    @property
    def expensive_reset(self) -> bool:  # type: ignore[override]
        """The environment's."""
        return self.env.expensive_reset

    @property
    def masks_actions(self) -> bool:  # type: ignore[override]
        """The environment's."""
        return self.env.masks_actions

    @property
    def reference_episodes(self) -> int:
        """The environment's."""
        return self.env.reference_episodes

    @property
    def observation_spec(self) -> PyTree:
        """The environment's."""
        return self.env.observation_spec

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """The environment's."""
        return self.env.observation_range

    @property
    def action_space(self) -> ActionSpace:
        """The environment's."""
        return self.env.action_space

    @property
    def action_names(self) -> tuple[str, ...] | None:
        """The environment's."""
        return self.env.action_names

    @property
    def observation_names(self) -> tuple[str, ...] | None:
        """The environment's."""
        return self.env.observation_names

    @property
    def has_expert(self) -> bool:
        """The environment's."""
        return self.env.has_expert

    @property
    def ends_in_time(self) -> bool:  # type: ignore[override]
        """The environment's; not where masks cut repeats short: an episode may then take more steps of the policy."""
        return self.env.ends_in_time and not self.env.masks_actions

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """The environment's."""
        return self.env.reset(key, task)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Up to `times` steps."""
        keys = jax.random.split(key, self.times)

        def again(carry: tuple[PyTree, TimeStep], key: jax.Array) -> tuple[tuple[PyTree, TimeStep], None]:
            state, before = carry
            next_state, timestep = self.env.step(key, state, action, task)
            timestep = dataclasses.replace(timestep, reward=before.reward + timestep.reward)
            over = before.terminated | before.truncated
            if before.legal is not None:
                over |= ~self.action_space.allows(before.legal, action)
            return select(over, carry, (next_state, timestep)), None

        state, timestep = jax.lax.scan(again, self.env.step(keys[0], state, action, task), keys[1:])[0]
        return state, one_end(timestep)

    def step_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, taken: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Up to `times` steps, as far as the environment's horizon. taken: int32 [], steps of the policy so far.

        Where masks cut repeats short, steps of the environment cannot be counted so: the policy's are.
        """
        if self.env.masks_actions:
            return super().step_within(key, state, action, task, taken)
        keys, before = jax.random.split(key, self.times), taken * self.times

        def again(carry: tuple[PyTree, TimeStep, jax.Array], inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            _, seen, _ = carry
            key, index = inputs
            next_state, timestep, cut = self.env.step_within(key, carry[0], action, task, before + index)
            timestep = dataclasses.replace(timestep, reward=seen.reward + timestep.reward)
            return select(seen.terminated | seen.truncated, carry, (next_state, timestep, cut)), None

        first = self.env.step_within(keys[0], state, action, task, before)
        return jax.lax.scan(again, first, (keys[1:], jnp.arange(1, self.times)))[0]

    def tasks(self, split: Split) -> PyTree:
        """The environment's."""
        return self.env.tasks(split)

    def success(self, timestep: TimeStep, episode_return: jax.Array) -> jax.Array:
        """The environment's; of the summed reward of the last action's steps."""
        return self.env.success(timestep, episode_return)

    def optimal_action(self, state: PyTree, task: PyTree) -> jax.Array:
        """The environment's, held for all of an action's steps: no longer optimal."""
        return self.env.optimal_action(state, task)

    def render_trial(self, trial: TrialRecord) -> np.ndarray | None:
        """The environment's."""
        return self.env.render_trial(trial)

    def record(self, state: PyTree) -> PyTree:
        """The environment's."""
        return self.env.record(state)

    def metrics(self, state: PyTree) -> dict[str, jax.Array]:
        """The environment's."""
        return self.env.metrics(state)
