"""Operations on the stored context of a trial: windows, shuffling of episodes, refresh after an update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models.memory import Memory
from relic_jax.models.policy import Policy
from relic_jax.types import Params, PyTree, StepInput, Trajectory

ROWS = 1024  # of the network at a time in a refresh on CPU: environments times steps
ACCELERATOR_ROWS = 32_768  # the same elsewhere: enough to fill it


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
    policy: Policy,
    params: Params,
    memory: Memory,
    inputs: StepInput,
    value: jax.Array,
    first_segment: jax.Array | int,
    segments: jax.Array,
    segment: int,
) -> tuple[Memory, jax.Array]:
    """Recomputes the context's keys, values and value predictions with new weights.

    memory: the context, full up to the end of `segments`; inputs: [B, T, ...]; value: float32 [B, T]. Recomputed are
    segments first_segment … segments (int32 []) of `segment` steps each: the cost is the sum over them of what precedes
    and includes each. Returns (memory, value). A few environments at a time, so that what one layer leaves for the
    next stays in a core's cache.
    """

    def one_group(rows: tuple[Memory, StepInput, jax.Array]) -> tuple[Memory, jax.Array]:
        memory, inputs, value = rows
        memory = memory.replace(length=length).rewound(inputs.first, first_segment * segment)

        def one_segment(index: jax.Array, carry: tuple[Memory, jax.Array]) -> tuple[Memory, jax.Array]:
            memory, value = carry
            start = index * segment
            output, memory = policy.unroll(params, memory, window(inputs, start, segment))
            return memory, write_window(value, output.value, start)

        memory, value = lax.fori_loop(first_segment, segments, one_segment, (memory, value))
        return memory.replace(length=no_length), value

    batch, length, no_length = value.shape[0], memory.length, None
    limit = ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    if policy.is_recurrent:  # a state goes from step to step: all environments at once
        limit = batch * segment
    group = max(size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * segment <= limit))
    split = jax.tree.map(
        lambda x: x.reshape(batch // group, group, *x.shape[1:]), (memory.replace(length=no_length), inputs, value)
    )
    merged = jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), lax.map(one_group, split))
    return merged[0].replace(length=length), merged[1]
