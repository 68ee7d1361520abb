"""Trials: many consecutive episodes of one task, for a batch of environments.

A trial runs a fixed number of steps in ONE task. The environment is reset between episodes; the task stays the same.
`Trials` does the resets, the batching (`vmap`) and the bookkeeping per episode. It keeps termination and truncation
apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.environment.base import Environment, PyTree, TimeStep, VisualEnvironment
from relic_jax.environment.timestep import one_end
from relic_jax.shards import WHOLE, Places, Shard

MIN_BLOCK, MAX_BLOCKS = 8, 8
"""Expensive resets are done in blocks of at least MIN_BLOCK environments, and at most MAX_BLOCKS blocks hold all."""


@struct.dataclass
class TrialState:
    """The state of B environments during their trials. All leaves have a leading axis B.

    Attributes:
        env: States of the environments.
        task: Their tasks.
        observation: The next input of the policy.
        previous_action: int32 [B] or [B, n], or float32 [B, n] for a `Box`. The last action as the policy reads it
            (`ActionSpace.to_policy`). Before the first action of an episode: `ActionSpace.null_action`.
        previous_reward: float32 [B]. The reward that came with `observation`. After the end of an episode it is 0, as
            in the paper's code (the last reward of an episode is never seen), or that last reward if
            `Trials.show_last_reward`.
        first: bool [B]. Whether `observation` is the first of an episode.
        episode_return: float32 [B]. Undiscounted return of the current episode so far.
        legal: bool [B, mask_size]. The actions that can be taken next. None: the environment has no masks.
        episode_steps: int32 [B]. Steps of the current episode so far. None if they are not needed: the environment's
            episodes end in time, or the state is stored (`Trials.counting` restores them).
    """

    env: PyTree
    task: PyTree
    observation: PyTree
    previous_action: jax.Array
    previous_reward: jax.Array
    first: jax.Array
    episode_return: jax.Array
    legal: jax.Array | None = None
    episode_steps: jax.Array | None = None


@struct.dataclass
class TrialStep:
    """The result of one step of B environments.

    Attributes:
        reward: float32 [B].
        terminated: bool [B].
        truncated: bool [B]. At most one of `terminated` and `truncated` holds. If one does, the next episode started.
        final_observation: Leading axis B. The observation before any reset, for bootstrapping at truncation. For a
            `VisualEnvironment` only rows with `truncated` hold it; other rows hold the next observation of the trial.
        episode_return: float32 [B]. Return of the episode up to and including this step.
        success: bool [B]. Meaningful at the end of an episode.
        metrics: float32 [B] by name, `Environment.metrics`. Meaningful at the end of an episode.
        cut: bool [B]. Whether the horizon cut the episode, not the environment. None if nothing is cut.
    """

    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_observation: PyTree
    episode_return: jax.Array
    success: jax.Array
    metrics: dict[str, jax.Array]
    cut: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Trials:
    """Trials of B copies of an environment inside jit. Methods are pure and consume the keys that they take.

    Episodes are truncated at the horizon unless the environment ends them in time (`Environment.ends_in_time`).

    Attributes:
        env: The environment.
        show_last_reward: Whether the policy sees the last reward of an episode, at the first step of the next one.
        shard: The part of all environments that these copies represent. Keys are split among all environments.
    """

    env: Environment
    show_last_reward: bool = False
    shard: Shard | Places = WHOLE

    def counting(self, state: TrialState, ended: jax.Array, filled: jax.Array | int) -> TrialState:
        """Restore `episode_steps` in a stored state, if they are needed.

        Args:
            state: The stored state.
            ended: bool [B, T]. Whether an episode ended at each step of the trial.
            filled: int32 []. Number of steps taken so far. Later entries of `ended` are ignored.
        """
        if self.env.ends_in_time:
            return state
        number = jnp.arange(1, ended.shape[1] + 1)
        begun = jnp.where(ended & (number <= filled), number, 0).max(1)
        return dataclasses.replace(state, episode_steps=(filled - begun).astype(jnp.int32))

    def reset(self, key: jax.Array, tasks: PyTree) -> TrialState:
        """Start trials.

        Args:
            key: Typed PRNG key [].
            tasks: Pytree with leading axis B.
        """
        batch, actions = jax.tree.leaves(tasks)[0].shape[0], self.env.action_space
        env_state, timestep = jax.vmap(self.env.reset)(self.shard.split(key, batch), tasks)
        return TrialState(
            env=env_state,
            task=tasks,
            observation=timestep.observation,
            previous_action=jnp.full((batch, *actions.shape), actions.null_action, actions.dtype),
            previous_reward=jnp.zeros((batch,), jnp.float32),
            first=jnp.ones((batch,), bool),
            episode_return=jnp.zeros((batch,), jnp.float32),
            legal=timestep.legal,
            episode_steps=None if self.env.ends_in_time else jnp.zeros((batch,), jnp.int32),
        )

    def step(self, key: jax.Array, state: TrialState, action: jax.Array) -> tuple[TrialState, TrialStep]:
        """Step every environment, and reset those whose episode ended.

        Args:
            key: Typed PRNG key [].
            state: The current state.
            action: int32 [B] or [B, n], or float32 [B, n], in the policy's units. Values of a `Box` outside −1 … 1 are
                clipped.

        Returns:
            The next state and the result of the step.
        """
        actions = self.env.action_space
        end, timestep, cut, next_env, (observation, legal) = self._advance(key, state, actions.to_env(action))
        ended = timestep.terminated | timestep.truncated
        steps = None if state.episode_steps is None else jnp.where(ended, 0, state.episode_steps + 1)
        episode_return = state.episode_return + timestep.reward
        previous_reward = timestep.reward if self.show_last_reward else jnp.where(ended, 0.0, timestep.reward)
        next_state = TrialState(
            env=next_env,
            task=state.task,
            observation=observation,
            previous_action=select(ended, jnp.full_like(action, actions.null_action), actions.to_policy(action)),
            previous_reward=previous_reward,
            first=ended,
            episode_return=jnp.where(ended, 0.0, episode_return),
            legal=legal,
            episode_steps=steps,
        )
        return next_state, TrialStep(
            reward=timestep.reward,
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            final_observation=timestep.observation,
            episode_return=episode_return,
            success=jax.vmap(self.env.success)(timestep, episode_return),
            metrics=jax.vmap(self.env.metrics)(end),
            cut=cut,
        )

    def _advance(
        self, key: jax.Array, state: TrialState, action: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array | None, PyTree, PyTree]:
        """Step, and reset environments whose episode ended.

        Returns:
            The states before resets, the TimeSteps, `TrialStep.cut`, the next states, and the next observations and
            masks of legal actions.
        """
        step_keys, reset_keys = self.shard.split(key, 2, action.shape[0])
        if isinstance(self.env, VisualEnvironment):
            return self._advance_visual(self.env, step_keys, reset_keys, state, action)
        inputs = (step_keys, state.env, action, state.task)
        cut = None
        if state.episode_steps is None:
            end, timestep = jax.vmap(self.env.step)(*inputs)
        else:
            end, timestep, cut = jax.vmap(self.env.step_within)(*inputs, state.episode_steps)
        timestep = one_end(timestep)
        ended = timestep.terminated | timestep.truncated

        def reset(key: jax.Array, task: PyTree) -> tuple[PyTree, PyTree]:
            start, first = self.env.reset(key, task)
            return start, (first.observation, first.legal)

        replace = replace_few if self.env.expensive_reset else replace_all
        old = end, (timestep.observation, timestep.legal)
        next_env, first = replace(ended, reset, (reset_keys, state.task), old)
        return end, timestep, cut, next_env, first

    @staticmethod
    def _advance_visual(
        env: VisualEnvironment, step_keys: jax.Array, reset_keys: jax.Array, state: TrialState, action: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array | None, PyTree, PyTree]:
        """`_advance` with one observation per step, and a second one if an episode was truncated."""
        observe, cut = jax.jit(jax.vmap(env.observe)), None  # traced once for two calls
        inputs = (step_keys, state.env, action, state.task)
        if state.episode_steps is None:
            end, timestep = jax.vmap(env.transition)(*inputs)
        else:
            end, timestep, cut = jax.vmap(env.transition_within)(*inputs, state.episode_steps)
        timestep = one_end(timestep)
        ended = timestep.terminated | timestep.truncated
        replace = replace_few if env.expensive_reset else replace_all
        next_env, observation = observe(replace(ended, env.restart, (reset_keys, end, state.task), end), state.task)

        def final_observation() -> PyTree:
            return select(timestep.truncated, observe(end, state.task)[1], observation)

        final = jax.lax.cond(timestep.truncated.any(), final_observation, lambda: observation)
        legal = jax.vmap(env.legal)(next_env, state.task)
        return end, dataclasses.replace(timestep, observation=final), cut, next_env, (observation, legal)


def replace_all(rows: jax.Array, make: Callable[..., PyTree], inputs: tuple[PyTree, ...], old: PyTree) -> PyTree:
    """Replace some rows of a batch. New values are computed for all rows.

    Args:
        rows: bool [B]. The rows to replace.
        make: Computes the new value of ONE row.
        inputs: Arguments of `make`, pytrees with leading axis B.
        old: The values of the other rows, a pytree with leading axis B.
    """
    return select(rows, jax.vmap(make)(*inputs), old)


def replace_few(rows: jax.Array, make: Callable[..., PyTree], inputs: tuple[PyTree, ...], old: PyTree) -> PyTree:
    """`replace_all` for an expensive `make` and few rows: new values are computed for these rows only, in blocks."""
    batch = rows.shape[0]
    block = min(batch, max(MIN_BLOCK, -(-batch // MAX_BLOCKS)))

    def replace_block(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        index = jnp.nonzero(carry[0], size=block, fill_value=batch)[0]  # writes to the fill value are dropped
        made = jax.vmap(make)(*jax.tree.map(lambda x: x[index], inputs))
        return jax.tree.map(lambda x, value: x.at[index].set(value, mode="drop"), carry, (False, made))

    return jax.lax.while_loop(lambda carry: carry[0].any(), replace_block, (rows, old))[1]


def select(condition: jax.Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Choose rows from two pytrees with leading axis B. `condition` is bool [B]."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        if a is b:  # nothing to copy
            return a
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, on_true, on_false)


__all__ = ["TrialState", "TrialStep", "Trials", "select"]
