"""Operations on the stored context of a trial: windows, shuffling of episodes, refresh after an update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models.cache import KVCache
from relic_jax.models.policy import Policy
from relic_jax.types import Params, PyTree, StepInput, Trajectory


def window(tree: PyTree, start: jax.Array | int, size: int) -> PyTree:
    """Steps start … start+size of every [B, T, ...] leaf."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=1), tree)


def write_window(tree: PyTree, new: PyTree, start: jax.Array | int) -> PyTree:
    """Writes [B, K, ...] leaves over steps start … start+K of [B, T, ...] leaves."""
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=1), tree, new)


def shuffled_order(key: jax.Array, first: jax.Array, ended: jax.Array, length: jax.Array) -> jax.Array:
    """One environment's context order with the COMPLETE episodes permuted: int32 [T], old index of each new step.

    first, ended: bool [T]. The running episode stays last among the `length` filled steps, unfilled slots stay after.
    """
    steps = first.shape[0]
    step = jnp.arange(steps)
    filled = step < length
    episode = jnp.cumsum(first & filled) - 1
    complete = jax.ops.segment_max((ended & filled).astype(jnp.int32), episode, steps) > 0
    priority = jnp.where(complete, jax.random.uniform(key, (steps,)), 2.0)[episode]
    return jnp.argsort(jnp.where(filled, priority, 3.0), stable=True)


def shuffle_episodes(key: jax.Array, trajectory: Trajectory, length: jax.Array) -> Trajectory:
    """Shuffles each environment's complete episodes, independently of the others."""
    first, ended = trajectory.inputs.first, trajectory.terminated | trajectory.truncated
    keys = jax.random.split(key, first.shape[0])
    order = jax.vmap(shuffled_order, in_axes=(0, 0, 0, None))(keys, first, ended, length)
    return jax.tree.map(lambda x: jax.vmap(lambda row, index: row[index])(x, order), trajectory)


def refresh(
    policy: Policy, params: Params, inputs: StepInput, value: jax.Array, segments: jax.Array, segment: int
) -> tuple[KVCache, jax.Array]:
    """Recomputes the context's keys, values and value predictions with new weights.

    inputs: [B, T, ...]; value: float32 [B, T]; segments: int32 [], filled segments of `segment` steps each: the cost
    follows what is filled. Returns (memory, value).
    """
    batch, steps = value.shape

    def one_segment(index: jax.Array, carry: tuple[KVCache, jax.Array]) -> tuple[KVCache, jax.Array]:
        memory, value = carry
        start = index * segment
        output, memory = policy.unroll(params, memory, window(inputs, start, segment))
        return memory, write_window(value, output.value, start)

    return lax.fori_loop(0, segments, one_segment, (policy.initial_memory(batch, steps), value))
