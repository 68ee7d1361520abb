"""From one segment to the next: continue the trial with a refreshed context, or start a new trial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models.memory import Memory
from relic_jax.rl import context
from relic_jax.rl.curriculum import next_curriculum
from relic_jax.rl.state import Setup, TrainState, new_teacher_memory, new_trial
from relic_jax.types import Trajectory


def continue_trial(setup: Setup, state: TrainState, key: jax.Array) -> TrainState:
    """Continue the trial after a partial update.

    Shuffles the complete episodes of the context and recomputes its keys, values and value predictions, as often as
    `ppo.refresh_every` says. The stored log-probabilities remain those of the acting policy.
    """
    ppo, segments = setup.config.ppo, state.segment + 1
    if ppo.refresh_every is None:
        return state.replace(segment=segments)

    def refresh() -> tuple[Trajectory, Memory]:
        return refreshed_context(setup, state, key)

    def keep() -> tuple[Trajectory, Memory]:
        return state.trajectory, state.memory

    if ppo.refresh_every == 1:
        trajectory, memory = refresh()
    else:
        trajectory, memory = lax.cond(segments % ppo.refresh_every == 0, refresh, keep)
    return state.replace(segment=segments, trajectory=trajectory, memory=memory)


def refreshed_context(setup: Setup, state: TrainState, key: jax.Array) -> tuple[Trajectory, Memory]:
    """Return the context shuffled and recomputed, going back `ppo.refresh_segments` segments (None: all of them)."""
    ppo, segment, segments = setup.config.ppo, setup.config.trial.segment, state.segment + 1
    trajectory = state.trajectory
    if ppo.shuffle:
        trajectory = context.shuffle_episodes(key, trajectory, segments * segment, setup.shard)
    start = 0 if ppo.refresh_segments is None else jnp.maximum(segments - ppo.refresh_segments, 0)
    memory, value = context.refresh(
        setup.policy, state.params, state.memory, trajectory.inputs, trajectory.value, start, segments, segment
    )
    return trajectory.replace(value=value), memory


def start_trial(setup: Setup, state: TrainState, key: jax.Array) -> TrainState:
    """Start a new trial after the last update of a trial, with new tasks and an empty context.

    The context is filled with zeros, which compress well in checkpoints.
    """
    trial, curriculum = setup.config.trial, state.curriculum
    if curriculum is not None:
        key, rung_key = jax.random.split(key)
        curriculum = next_curriculum(setup.config, curriculum, state.env_steps, rung_key, setup.total, setup.shard)
    return state.replace(
        segment=jnp.zeros_like(state.segment),
        trial=new_trial(setup, key, curriculum),
        trajectory=jax.tree.map(jnp.zeros_like, state.trajectory),
        memory=setup.policy.initial_memory(setup.local_environments, trial.steps),
        curriculum=curriculum,
        teacher=new_teacher_memory(setup),
    )
