"""Learning on an NVIDIA GPU: attention of a block of steps by cuDNN's flash attention.

`jax.nn.dot_product_attention` knows neither sinks nor a context in front of the block. The sink becomes key 0, in one
softmax with the others, so its gradients are exact: merging it in afterwards would take the gradient into a
log-sum-exp, which jax (0.10.2) drops. A context follows the block's own keys and is cut off after its filled slots.

`attention.attend_reference` is the definition; `transformer.block_attention` says what runs elsewhere.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.backend import get_backend

from relic_jax.models.attention import Context, Sink

MAX_WIDTH = 128  # of a head


def on_ampere() -> bool:
    """Whether the devices are CUDA's, Ampere or later."""
    backend = get_backend()
    return "cuda" in backend.platform_version and float(backend.devices()[0].compute_capability) >= 8


def flash_block(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    episodes: jax.Array,
    context: Context,
    sink: Sink | None,
    *,
    within_episode: bool,
    valid: jax.Array | None = None,
    start: jax.Array | int = 0,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """As `attend_block`, arguments and result. cudnn: bfloat16, heads of up to 128 numbers, a multiple of 8.

    A whole trial is causal from its first step on, and half of its scores are never computed. Otherwise (a context,
    some queries of a block, attention within the episode) what is visible is a mask of 2·Q·(K + S) bytes, per
    environment where it depends on the episode.
    """
    steps, sinks = query.shape[2], 0 if sink is None else 1
    if sink is not None:
        batch = (key.shape[0], *sink.key[:, None].shape)
        front = [jnp.broadcast_to(x[:, None].astype(key.dtype), batch) for x in sink]
        key, value = (jnp.concatenate([x, y], axis=2) for x, y in zip(front, (key, value), strict=True))
    if not context.capacity and not within_episode and query.shape[2] + sinks == key.shape[2]:
        query = jnp.pad(query, [(0, 0), (0, 0), (sinks, 0), (0, 0)])  # of the sink itself: it makes the rest causal
        query, key, value = (_even(x, 2) for x in (query, key, value))
        out = _attention(query, key, value, implementation, is_causal=True)[:, :, sinks : sinks + steps]
    else:
        visible = _visible(steps, episodes, context, within_episode, start)
        keys, values = (lax.stop_gradient(x.decoded(key.dtype)) for x in (context.keys, context.values))
        key, value = (jnp.concatenate([x, y], axis=2) for x, y in ((key, keys), (value, values)))
        visible = jnp.pad(visible, [(0, 0), (0, 0), (0, 0), (sinks, 0)], constant_values=True)
        filled = key.shape[2] - context.capacity + context.length if context.capacity else sinks + start + steps
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
    return out if valid is None else jnp.where((start + jnp.arange(steps) < valid)[:, None], out, 0)


def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: Literal["cudnn", "xla"], **options: Any
) -> jax.Array:
    """[B, H, Q, D] → [B, H, Q, D]."""
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    out: Any = jax.nn.dot_product_attention(query, key, value, implementation=implementation, **options)
    return out.swapaxes(1, 2)


def _visible(
    steps: int, episodes: jax.Array, context: Context, within_episode: bool, start: jax.Array | int
) -> jax.Array:
    """What each query sees of the block and, after it, of the context's slots: bool [B or 1, 1, Q, K + S]."""
    own = start + jnp.arange(steps)[:, None] >= jnp.arange(episodes.shape[1])
    filled = jnp.broadcast_to(jnp.arange(context.capacity) < context.length, (steps, context.capacity))
    visible = jnp.concatenate([own, filled], axis=1)[None]
    if within_episode:
        every = jnp.concatenate([episodes, context.episodes], axis=1)
        own_episodes = lax.dynamic_slice_in_dim(episodes, start, steps, axis=1)
        visible = visible & (own_episodes[:, :, None] == every[:, None, :])
    return visible[:, None]


def _even(x: jax.Array, axis: int) -> jax.Array:
    """With one more 0 (or False) at the end where it takes that to make the length even, as cuDNN wants it."""
    return jnp.pad(x, [(0, x.shape[i] % 2 if i == axis else 0) for i in range(x.ndim)])
