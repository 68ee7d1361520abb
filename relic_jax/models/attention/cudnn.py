"""Attention of a block of steps on NVIDIA GPUs from Ampere on, by cuDNN's flash attention.

`jax.nn.dot_product_attention` has neither sinks nor a context before the block. The sink becomes key 0 of the same
softmax, so its gradients are exact. Merging it in afterwards would need the gradient of a log-sum-exp, which JAX
(0.10.2) drops. The context follows the keys of the block and is cut off after its filled slots.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models.attention.inputs import AttentionInputs

Implementation = Literal["cudnn", "xla"]


def attend(inputs: AttentionInputs, *, implementation: Implementation = "cudnn") -> jax.Array:
    """Compute attention for a block of steps.

    A pass over a whole trial is causal, and half of its scores are never computed. With a context, with some queries of
    a block, within the episode or in a window, a mask of 2·Q·(K + S) bytes is passed, per environment if it depends on
    the episode.

    Args:
        inputs: Queries, block and context. See `AttentionInputs`. cuDNN takes bfloat16 and up to 128 numbers per head,
            a multiple of 8.
        implementation: "xla" computes the same in XLA, for tests.

    Returns:
        ``[B, H, Q, D]`` in the dtype of ``inputs.query``.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    sink, context = inputs.sink, inputs.context
    steps, sinks = query.shape[2], 0 if sink is None else 1
    if sink is not None:
        batch = (key.shape[0], *sink.key[:, None].shape)
        front = [jnp.broadcast_to(x[:, None].astype(key.dtype), batch) for x in sink]
        key, value = (jnp.concatenate([x, y], axis=2) for x, y in zip(front, (key, value), strict=True))
    masked = inputs.within_episode or inputs.window is not None
    if not context.capacity and not masked and query.shape[2] + sinks == key.shape[2]:
        query = jnp.pad(query, [(0, 0), (0, 0), (sinks, 0), (0, 0)])  # a query for the sink makes the rest causal
        query, key, value = (_even(x, 2) for x in (query, key, value))
        out = _attention(query, key, value, implementation, is_causal=True)[:, :, sinks : sinks + steps]
    else:
        visible = _visible(inputs)
        keys, values = (lax.stop_gradient(x.decoded(key.dtype)) for x in (context.keys, context.values))
        key, value = (jnp.concatenate([x, y], axis=2) for x, y in ((key, keys), (value, values)))
        visible = jnp.pad(visible, [(0, 0), (0, 0), (0, 0), (sinks, 0)], constant_values=True)
        capacity = context.capacity
        filled = key.shape[2] - capacity + context.length if capacity else sinks + inputs.start + steps
        query, key, value = (_even(x, 2) for x in (query, key, value))
        out = _attention(
            query,
            key,
            value,
            implementation,
            mask=_even(_even(visible, 2), 3),
            query_seq_lengths=jnp.full(query.shape[:1], steps, jnp.int32),
            key_value_seq_lengths=jnp.full(query.shape[:1], filled, jnp.int32),
        )[:, :, :steps]
    return inputs.zero_invalid(out)


def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: Implementation, **options: Any
) -> jax.Array:
    """Call JAX's attention on arrays ``[B, H, Q, D]``."""
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    out: Any = jax.nn.dot_product_attention(query, key, value, implementation=implementation, **options)
    return out.swapaxes(1, 2)


def _visible(inputs: AttentionInputs) -> jax.Array:
    """Return the mask of the block's steps and, after them, the context's slots: bool ``[B or 1, 1, Q, K + S]``."""
    steps, context, start = inputs.query.shape[2], inputs.context, inputs.start
    own = start + jnp.arange(steps)[:, None] >= jnp.arange(inputs.episodes.shape[1])
    filled = jnp.broadcast_to(jnp.arange(context.capacity) < context.length, (steps, context.capacity))
    visible = jnp.concatenate([own, filled], axis=1)[None]
    if inputs.window is not None:
        slot = jnp.concatenate([context.length + jnp.arange(own.shape[1]), jnp.arange(context.capacity)])
        step = context.length + start + jnp.arange(steps)
        visible = visible & (step[:, None] - slot[None, :] < inputs.window)
    if inputs.within_episode:
        key_episodes = jnp.concatenate([inputs.episodes, context.episodes], axis=1)
        query_episodes = lax.dynamic_slice_in_dim(inputs.episodes, start, steps, axis=1)
        visible = visible & (query_episodes[:, :, None] == key_episodes[:, None, :])
    return visible[:, None]


def _even(x: jax.Array, axis: int) -> jax.Array:
    """Pad an axis to an even length with 0 (or False). cuDNN requires it."""
    return jnp.pad(x, [(0, x.shape[i] % 2 if i == axis else 0) for i in range(x.ndim)])
