"""Attention as plain functions: the definition that every kernel is tested against, differentiated by JAX.

`attend` is the definition for a block of steps, in O(Q·(S + K)) memory. `attend_step` is the definition for a single
step against the cache, and the kernel that CPUs act with.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relic_jax.models.attention.inputs import MASKED, AttentionInputs


def rotate(x: jax.Array, index: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Apply a rotary embedding with one index per step (Su et al. 2021, arXiv 2104.09864).

    The two halves of a head are rotated against each other, as in Llama.

    Args:
        x: Queries or keys ``[B, H, Q, D]`` with an even D.
        index: int32 ``[B, Q]``. The transformer passes the index of the episode, so all steps of an episode share an
            angle.
        base: Ratio of the largest to the smallest wavelength.

    Returns:
        The rotated ``x``, in its dtype. Angles and products are float32.
    """
    half = x.shape[-1] // 2
    frequency = jnp.asarray(base ** (-np.arange(half) / half), jnp.float32)
    angle = index.astype(jnp.float32)[:, None, :, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return a product that is accumulated in float32, whatever the dtype of the operands."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def attend(inputs: AttentionInputs) -> jax.Array:
    """Compute attention for a block of steps. See `AttentionInputs`.

    Args:
        inputs: Queries, block and context.

    Returns:
        ``[B, H, Q, D]`` in the dtype of ``inputs.query``.
    """
    query, key, value, context, sink = inputs.query, inputs.key, inputs.value, inputs.context, inputs.sink
    q_len, k_len, slots = query.shape[2], key.shape[2], context.capacity
    context = lax.stop_gradient(context)
    keys = jnp.concatenate([context.keys.decoded(key.dtype), key], axis=2)
    values = jnp.concatenate([context.values.decoded(value.dtype), value], axis=2)
    scores = einsum("bhqd,bhkd->bhqk", query, keys)
    visible = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.arange(slots) < context.length, (q_len, slots)),
            inputs.start + jnp.arange(q_len)[:, None] >= jnp.arange(k_len)[None, :],
        ],
        axis=1,
    )[None]
    if inputs.window is not None:
        slot = jnp.concatenate([jnp.arange(slots), context.length + jnp.arange(k_len)])
        own = context.length + inputs.start + jnp.arange(q_len)
        visible = visible & (own[:, None] - slot[None, :] < inputs.window)
    if inputs.within_episode:
        key_episodes = jnp.concatenate([context.episodes, inputs.episodes], axis=1)
        query_episodes = lax.dynamic_slice_in_dim(inputs.episodes, inputs.start, q_len, 1)
        visible = visible & (query_episodes[:, :, None] == key_episodes[:, None, :])
    scores = jnp.where(visible[:, None], scores / math.sqrt(query.shape[-1]), MASKED)
    if sink is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        sink_scores = einsum("bhqd,hd->bhq", query, sink.key)
        sink_scores = sink_scores[..., None] / math.sqrt(query.shape[-1])
        weights = jax.nn.softmax(jnp.concatenate([sink_scores, scores], axis=-1), axis=-1)
        sink_out = weights[..., :1] * sink.value.astype(jnp.float32)[None, :, None, :]
        weights = weights[..., 1:]
    out = einsum("bhqk,bhkd->bhqd", weights.astype(values.dtype), values)
    return inputs.zero_invalid((out if sink is None else out + sink_out).astype(query.dtype))


def attend_step(inputs: AttentionInputs) -> jax.Array:
    """Compute attention for one step per environment against a cache that holds the step's own key and value.

    A context that is split over devices needs two all-reduces, of the largest scores and of the sums over slots.

    Args:
        inputs: A single step (Q = 1) and a context that includes it. See `AttentionInputs`.

    Returns:
        ``[B, H, 1, D]`` in the dtype of ``inputs.query``.
    """
    query, context, sink = inputs.query[:, :, 0], inputs.context, inputs.sink
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = einsum("bhd,bhsd->bhs", query * scale, context.keys.data.astype(query.dtype))
    if context.keys.scale is not None:
        scores *= context.keys.scale
    slot = jnp.arange(context.capacity)
    visible = (slot < context.length)[None]
    if inputs.window is not None:
        visible &= slot >= context.length - jnp.asarray(inputs.window)[..., None]
    if inputs.within_episode:
        visible &= context.episodes == inputs.episodes
    scores = jnp.where(visible[:, None], scores, MASKED)
    top = scores.max(-1)
    if inputs.axis is not None:
        top = lax.pmax(top, inputs.axis)
    if sink is not None:
        sink_score = einsum("bhd,hd->bh", query * scale, sink.key)
        top = jnp.maximum(top, sink_score)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(-1)
    scaled = weights if context.values.scale is None else weights * context.values.scale
    out = einsum("bhs,bhsd->bhd", scaled.astype(query.dtype), context.values.data.astype(query.dtype))
    if inputs.axis is not None:
        total, out = lax.psum((total, out), inputs.axis)
    if sink is not None:
        sink_weight = jnp.exp(sink_score - top)
        total += sink_weight
        out += sink_weight[..., None] * sink.value.astype(jnp.float32)
    return (out / total[..., None]).astype(query.dtype)[:, :, None]
