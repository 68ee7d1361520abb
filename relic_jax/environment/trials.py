"""Trials: many episodes of one task in a row, for a batch of environments.

A trial runs a fixed number of steps in ONE task. The environment resets between episodes, the task does not change.
The wrapper owns resetting, batching (vmap) and per-episode bookkeeping; it keeps termination and truncation apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.environment.base import Environment, PyTree, TimeStep, VisualEnvironment, cut_at, one_end

MIN_BLOCK, MAX_BLOCKS = 8, 8
"""Of environments that are reset at once where resets are dear: at least so many, and all in so many blocks."""


@struct.dataclass
class TrialState:
    """State of B environments in the middle of their trials.

    env: the environments' own states, leading axis B.
    task: their tasks, leading axis B.
    observation: what the policy sees next, leading axis B.
    previous_action: int32 [B] or [B, n], or float32 [B, n] of a `Box`; the action that led here as the policy reads it
      (`ActionSpace.to_policy`), −1, or zeros, before the first action of an episode.
    previous_reward: float32 [B]; the reward that came with `observation`. After an episode's end this is 0 (as in the
      original: the last reward of an episode is never seen), or that last reward where `show_last_reward` is set.
    first: bool [B]; `observation` opens an episode.
    episode_return: float32 [B]; undiscounted reward of the running episode so far.
    legal: bool [B, mask_size]; which actions can be taken next, None where the environment does not say so.
    episode_steps: int32 [B]; steps of the running episode so far. None where nothing is to be truncated: the
      environment's episodes end in time, or the state is one that is stored (`Trials.counting` puts it back).
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
    """What one step did, for B environments.

    reward: float32 [B]. terminated, truncated: bool [B]; at most one of them, and the next episode has begun.
    final_observation: leading axis B; the observation BEFORE any reset (for bootstrapping at truncation). Of a
      `VisualEnvironment` only where `truncated`, elsewhere it is what the trial goes on from.
    episode_return: float32 [B]; return of the episode up to and including this step.
    success: bool [B]; meaningful where the episode ended.
    metrics: float32 [B] by name, `Environment.metrics`; meaningful where the episode ended.
    cut: bool [B]; truncated here, at the horizon, which the environment did not do itself. None where nothing is cut.
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
    """Runs B copies of `env` in trials. Pure; every method takes explicit keys and consumes them.

    Episodes of an environment that may outlast its horizon (`Environment.ends_in_time`) are truncated there.
    """

    env: Environment
    show_last_reward: bool = False

    def counting(self, state: TrialState, ended: jax.Array, filled: jax.Array | int) -> TrialState:
        """A stored state with its `episode_steps`, where they are needed, from the trial's steps so far.

        ended: bool [B, T], an episode ended there; only the `filled` first steps have been taken.
        """
        if self.env.ends_in_time:
            return state
        number = jnp.arange(1, ended.shape[1] + 1)
        begun = jnp.where(ended & (number <= filled), number, 0).max(1)
        return dataclasses.replace(state, episode_steps=(filled - begun).astype(jnp.int32))

    def reset(self, key: jax.Array, tasks: PyTree) -> TrialState:
        """Starts trials. key: typed PRNG key []. tasks: pytree with leading axis B."""
        batch, actions = jax.tree.leaves(tasks)[0].shape[0], self.env.action_space
        env_state, timestep = jax.vmap(self.env.reset)(jax.random.split(key, batch), tasks)
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
        """One step of every environment, resetting those whose episode ended.

        action: as the policy chose it, int32 [B] or float32 [B, n]; of a `Box` what is outside of −1 … 1 is clipped.
        """
        actions = self.env.action_space
        end, timestep, cut, next_env, (observation, legal) = self._advance(key, state, actions.to_env(action))
        ended = timestep.terminated | timestep.truncated
        steps = None if state.episode_steps is None else jnp.where(ended, 0, state.episode_steps + 1)
        episode_return = state.episode_return + timestep.reward
        shown = timestep.reward if self.show_last_reward else jnp.where(ended, 0.0, timestep.reward)
        next_state = TrialState(
            env=next_env,
            task=state.task,
            observation=observation,
            previous_action=select(ended, jnp.full_like(action, actions.null_action), actions.to_policy(action)),
            previous_reward=shown,
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
        """Steps, and resets where an episode ended.

        Returns (states before resets, TimeSteps, cut, states, (observations, legal actions)).
        """
        step_keys, reset_keys = jax.random.split(key, (2, action.shape[0]))
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
        next_env, seen = replace(ended, reset, (reset_keys, state.task), old)
        return end, timestep, cut, next_env, seen

    @staticmethod
    def _advance_visual(
        env: VisualEnvironment, step_keys: jax.Array, reset_keys: jax.Array, state: TrialState, action: jax.Array
    ) -> tuple[PyTree, TimeStep, jax.Array | None, PyTree, PyTree]:
        """The same, looking once, or twice where an episode was truncated."""
        look, cut = jax.vmap(env.observe), None
        end, timestep = jax.vmap(env.transition)(step_keys, state.env, action, state.task)
        timestep = one_end(timestep)
        if state.episode_steps is not None:
            timestep, cut = cut_at(timestep, state.episode_steps + 1 >= env.horizon)
        ended = timestep.terminated | timestep.truncated
        replace = replace_few if env.expensive_reset else replace_all
        next_env, observation = look(replace(ended, env.restart, (reset_keys, end, state.task), end), state.task)

        def last_look() -> PyTree:
            return select(timestep.truncated, look(end, state.task)[1], observation)

        final = jax.lax.cond(timestep.truncated.any(), last_look, lambda: observation)
        legal = jax.vmap(env.legal)(next_env, state.task)
        return end, dataclasses.replace(timestep, observation=final), cut, next_env, (observation, legal)


def replace_all(rows: jax.Array, make: Callable[..., PyTree], inputs: tuple[PyTree, ...], old: PyTree) -> PyTree:
    """`old` with `make(*inputs)` in the rows, bool [B], where `rows` holds. make: of ONE row, made for all of them.

    inputs, old: pytrees with leading axis B.
    """
    return select(rows, jax.vmap(make)(*inputs), old)


def replace_few(rows: jax.Array, make: Callable[..., PyTree], inputs: tuple[PyTree, ...], old: PyTree) -> PyTree:
    """The same where `make` is dear and rows are few: made for a block of them at a time, as often as it takes."""
    batch = rows.shape[0]
    block = min(batch, max(MIN_BLOCK, -(-batch // MAX_BLOCKS)))

    def replace_block(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        index = jnp.nonzero(carry[0], size=block, fill_value=batch)[0]  # where there is no row, nothing is written
        made = jax.vmap(make)(*jax.tree.map(lambda x: x[index], inputs))
        return jax.tree.map(lambda x, value: x.at[index].set(value, mode="drop"), carry, (False, made))

    return jax.lax.while_loop(lambda carry: carry[0].any(), replace_block, (rows, old))[1]


def select(condition: jax.Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Per-environment choice between two pytrees with leading axis B. condition: bool [B]."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        if a is b:  # both branches carry the same array along: there is nothing to copy
            return a
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, on_true, on_false)


__all__ = ["TimeStep", "TrialState", "TrialStep", "Trials", "select"]
