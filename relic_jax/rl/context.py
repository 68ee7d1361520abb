"""Operations on the stored context of a trial: windows, shuffling of episodes, and the refresh after an update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy
from relic_jax.shards import WHOLE, Shard
from relic_jax.types import Params, PyTree, StepInput, Trajectory

ROWS = 1024
"""Rows (environments times steps) that the network processes at a time in a refresh on CPU, to fit a core's cache."""
ACCELERATOR_ROWS = 32_768
"""The same on accelerators: enough rows to use the whole device."""


def window(tree: PyTree, start: jax.Array | int, size: int) -> PyTree:
    """Return the steps start, …, start + size − 1 of arrays [B, T, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=1), tree)


def write_window(tree: PyTree, new: PyTree, start: jax.Array | int) -> PyTree:
    """Write arrays [B, K, ...] to the steps start, …, start + K − 1 of arrays [B, T, ...]."""
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=1), tree, new)


def shuffled_order(key: jax.Array, first: jax.Array, ended: jax.Array, length: jax.Array) -> jax.Array:
    """Return the order of one environment's steps in which its complete episodes are permuted.

    The current episode stays last among the filled steps, and the unfilled steps stay after them.

    Args:
        key: typed PRNG key [].
        first: bool [T], whether an episode starts at the step.
        ended: bool [T], whether an episode ends at the step.
        length: int32 [], number of filled steps.

    Returns:
        int32 [T], the old index of each new step.
    """
    steps = first.shape[0]
    step = jnp.arange(steps)
    filled = step < length
    episode = jnp.cumsum(first & filled) - 1
    complete = jax.ops.segment_max((ended & filled).astype(jnp.int32), episode, steps) > 0
    priority = jnp.where(complete, jax.random.uniform(key, (steps,)), 2.0)[episode]
    return jnp.argsort(jnp.where(filled, priority, 3.0), stable=True)


def shuffle_episodes(key: jax.Array, trajectory: Trajectory, length: jax.Array, shard: Shard = WHOLE) -> Trajectory:
    """Shuffle the complete episodes of each environment independently.

    Args:
        key: typed PRNG key [].
        trajectory: the trial so far.
        length: int32 [], number of filled steps.
        shard: the environments of this device.
    """
    first, ended = trajectory.inputs.first, trajectory.terminated | trajectory.truncated
    keys = shard.split(key, first.shape[0])
    order = jax.vmap(shuffled_order, in_axes=(0, 0, 0, None))(keys, first, ended, length)
    return jax.tree.map(lambda x: jax.vmap(lambda row, index: row[index])(x, order), trajectory)


def refresh(
    policy: Policy,
    params: Params,
    memory: Memory,
    inputs: StepInput,
    value: jax.Array,
    first_segment: jax.Array | int,
    segments: jax.Array,
    segment: int,
) -> tuple[Memory, jax.Array]:
    """Recompute keys, values and value predictions of the context with new parameters.

    A few environments are processed at a time, so the activations between two layers stay in a core's cache.

    Args:
        policy: the policy.
        params: its new parameters.
        memory: the context, filled up to the end of `segments`.
        inputs: inputs of the trial's steps, leading axes [B, T].
        value: value predictions, float32 [B, T].
        first_segment: int32 [], the first segment to recompute.
        segments: int32 [], the number of filled segments. Each recomputed segment attends to all steps up to its own.
        segment: steps per segment.

    Returns:
        The memory and the value predictions.
    """
    batch = value.shape[0]
    limit = ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    if policy.is_recurrent:  # steps are processed one after the other, so use all environments at once
        limit = batch * segment
    group = max(size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * segment <= limit))

    def one_group(rows: tuple[Memory, StepInput, jax.Array]) -> tuple[Memory, jax.Array]:
        memory, inputs, value = rows
        memory = memory.rewound(inputs.first, first_segment * segment)

        def one_segment(index: jax.Array, carry: tuple[Memory, jax.Array]) -> tuple[Memory, jax.Array]:
            memory, value = carry
            start = index * segment
            output, memory = policy.unroll(params, memory, window(inputs, start, segment))
            return memory, write_window(value, output.value, start)

        return lax.fori_loop(first_segment, segments, one_segment, (memory, value))

    split = jax.tree.map(lambda x: x.reshape(batch // group, group, *x.shape[1:]), (memory, inputs, value))
    merged: tuple[Memory, jax.Array] = lax.map(one_group, split)
    return jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), merged)
