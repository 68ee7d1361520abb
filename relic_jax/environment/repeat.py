"""Action repeat: each action lasts several steps of the environment (Mnih et al. 2013, arXiv 1312.5602)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import ConfigError
from relic_jax.environment.base import Environment, PyTree, TimeStep, VisualEnvironment
from relic_jax.environment.timestep import one_end
from relic_jax.environment.trials import select
from relic_jax.environment.wrappers import VisualWrapper, Wrapper


def repeated(env: Environment, times: int) -> Environment:
    """Return `env` with each action lasting `times` steps.

    Args:
        env: The environment.
        times: Steps per action. 1 returns `env` itself.

    Raises:
        ConfigError: If `times` is less than 1, or more than 1 for an environment in worker processes.
    """
    if times == 1:
        return env
    if times < 1 or env.on_host:
        allowed = "1 or more" if times < 1 else "1 for environments in worker processes"
        raise ConfigError(f"trial.action_repeat is {times}; allowed: {allowed}")
    return VisualRepeat(env, times) if isinstance(env, VisualEnvironment) else ActionRepeat(env, times)


@dataclasses.dataclass(frozen=True)
class ActionRepeat(Wrapper):
    """An environment in which each action lasts up to `times` steps of the wrapped environment.

    An action lasts fewer steps if the episode ends, or if the action is no longer legal. Rewards are summed. The
    observation and the end flags are those of the last step. The expert's action is repeated like any other, so it is
    no longer optimal.

    Attributes:
        env: The wrapped environment.
        times: Steps per action.
    """

    times: int

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """The longest episode, in actions of the policy."""
        return -(-self.env.horizon // self.times)

    @property
    def ends_in_time(self) -> bool:  # type: ignore[override]
        """Whether no episode outlasts the horizon.

        False with masks of legal actions: they can cut repeats short, so an episode can take more actions.
        """
        return self.env.ends_in_time and not self.env.masks_actions

    def step(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Take up to `times` steps."""
        return self._repeat(key, state, action, lambda k, s, a: self.env.step(k, s, a, task))

    def step_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, elapsed: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Take up to `times` steps, but none beyond the horizon of the wrapped environment.

        Args:
            key: Typed PRNG key [].
            state: The current state.
            action: An element of `action_space`.
            task: One task, without a leading axis.
            elapsed: int32 []. Actions of the episode before this one. With masks of legal actions, steps of the wrapped
                environment do not follow from it, so the horizon in actions applies.

        Returns:
            The next state, its `TimeStep`, and whether the horizon cut the episode: bool [].
        """
        if self.env.masks_actions:
            return Environment.step_within(self, key, state, action, task, elapsed)
        return self._repeat_within(key, state, elapsed, lambda k, s, n: self.env.step_within(k, s, action, task, n))

    def _repeat(
        self,
        key: jax.Array,
        state: PyTree,
        action: jax.Array,
        step: Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, TimeStep]],
    ) -> tuple[PyTree, TimeStep]:
        """Call `step(key, state, action)` up to `times` times."""
        keys = jax.random.split(key, self.times)

        def again(carry: tuple[PyTree, TimeStep], key: jax.Array) -> tuple[tuple[PyTree, TimeStep], None]:
            state, before = carry
            next_state, timestep = step(key, state, action)
            timestep = dataclasses.replace(timestep, reward=before.reward + timestep.reward)
            over = before.terminated | before.truncated
            if before.legal is not None:
                over |= ~self.action_space.allows(before.legal, action)
            return select(over, carry, (next_state, timestep)), None

        state, timestep = jax.lax.scan(again, step(keys[0], state, action), keys[1:])[0]
        return state, one_end(timestep)

    def _repeat_within(
        self,
        key: jax.Array,
        state: PyTree,
        elapsed: jax.Array,
        step: Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, TimeStep, jax.Array]],
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Call `step(key, state, steps elapsed)` up to `times` times."""
        keys, before = jax.random.split(key, self.times), elapsed * self.times

        def again(carry: tuple[PyTree, TimeStep, jax.Array], inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            state, last, _ = carry
            key, index = inputs
            next_state, timestep, cut = step(key, state, before + index)
            timestep = dataclasses.replace(timestep, reward=last.reward + timestep.reward)
            return select(last.terminated | last.truncated, carry, (next_state, timestep, cut)), None

        return jax.lax.scan(again, step(keys[0], state, before), (keys[1:], jnp.arange(1, self.times)))[0]


@dataclasses.dataclass(frozen=True)
class VisualRepeat(ActionRepeat, VisualWrapper):
    """`ActionRepeat` of a `VisualEnvironment`: only the state after the last step of an action is observed.

    Attributes:
        env: The wrapped environment.
        times: Steps per action.
    """

    env: VisualEnvironment

    reset = VisualEnvironment.reset
    step = VisualEnvironment.step
    step_within = VisualEnvironment.step_within
    ends_in_time = ActionRepeat.ends_in_time

    def transition(self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Take up to `times` steps without an observation."""

        def step(key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, TimeStep]:
            state, timestep = self.env.transition(key, state, action, task)
            return state, dataclasses.replace(timestep, legal=self.env.legal(state, task))

        state, timestep = self._repeat(key, state, action, step)
        return state, dataclasses.replace(timestep, legal=None)

    def transition_within(
        self, key: jax.Array, state: PyTree, action: jax.Array, task: PyTree, elapsed: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array]:
        """Take up to `times` steps within the horizon, without an observation. See `step_within`."""
        if self.env.masks_actions:
            return VisualEnvironment.transition_within(self, key, state, action, task, elapsed)
        return self._repeat_within(
            key, state, elapsed, lambda k, s, n: self.env.transition_within(k, s, action, task, n)
        )
