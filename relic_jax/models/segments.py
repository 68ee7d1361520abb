"""Attention of blocks of steps to segments: the parts of fixed size that Transformer-XL and Memo divide a trial into.

Segments are counted from the start of the trial, wherever a block of steps starts. Single steps, blocks of any size and
a pass over the whole trial therefore agree.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models.attention import Sink
from relic_jax.models.attention.inputs import MASKED
from relic_jax.models.attention.reference import einsum
from relic_jax.models.kv_formats import Slots


class Layout(NamedTuple):
    """Where consecutive steps lie in segments.

    Attributes:
        size: Number of steps per segment. Static.
        segments: Number of segments that hold the steps. Static.
        offset: int32 ``[]``, index of the first step in the first segment.
    """

    size: int
    segments: int
    offset: jax.Array | int

    @classmethod
    def of(cls, steps: int, size: int, offset: jax.Array | int) -> Layout:
        """Return the layout of ``steps`` steps. A traced offset needs room for any value."""
        return cls(size, -(-(steps + (offset if isinstance(offset, int) else size - 1)) // size), offset)

    def split(self, x: jax.Array) -> jax.Array:
        """Reshape steps ``[B, H, Q, D]`` to segments ``[B, H, N, size, D]``. Other places are zeros."""
        line = jnp.zeros((*x.shape[:2], self.segments * self.size, *x.shape[3:]), x.dtype)
        line = lax.dynamic_update_slice_in_dim(line, x, self.offset, axis=2)
        return line.reshape(*x.shape[:2], self.segments, self.size, *x.shape[3:])

    def join(self, x: jax.Array, steps: int) -> jax.Array:
        """Return the steps ``[B, H, Q, D]`` of segments, the inverse of `split`."""
        line = x.reshape(*x.shape[:2], self.segments * self.size, *x.shape[4:])
        return lax.dynamic_slice_in_dim(line, self.offset, steps, axis=2)

    def queries(self, start: jax.Array | int, steps: int) -> tuple[jax.Array | int, Layout]:
        """Return the segment of the step ``start``, and the layout of ``steps`` steps from there in its segments."""
        first = self.offset + start
        return first // self.size, Layout.of(steps, self.size, first % self.size)


def softmax(scores: jax.Array, visible: jax.Array, query: jax.Array, sink: Sink | None) -> tuple[jax.Array, jax.Array]:
    """Return attention weights and what the sink adds to the output.

    Args:
        scores: Products of queries and keys, float32 ``[B, H, N, Q, K]``.
        visible: bool, broadcastable to the scores. Each query sees at least one key.
        query: ``[B, H, N, Q, D]``, for the score of the sink.
        sink: The sink of the layer, or None.

    Returns:
        float32 weights ``[B, H, N, Q, K]`` and output of the sink, broadcastable to ``[B, H, N, Q, D]``.
    """
    scale = 1 / math.sqrt(query.shape[-1])
    scores = jnp.where(visible, scores * scale, MASKED)
    if sink is None:
        return jax.nn.softmax(scores, axis=-1), jnp.zeros(())
    sink_score = einsum("bhnqd,hd->bhnq", query, sink.key)[..., None] * scale
    weights = jax.nn.softmax(jnp.concatenate([sink_score, scores], axis=-1), axis=-1)
    return weights[..., 1:], weights[..., :1] * sink.value.astype(jnp.float32)[None, :, None, None]


def line(past: Slots | jax.Array, new: jax.Array, start: jax.Array | int, total: int) -> jax.Array:
    """Return ``[B, H, total, ...]`` with ``past`` at place 0, without a gradient, and ``new`` at ``start``.

    Args:
        past: ``[B, H, S, ...]``.
        new: ``[B, H, Q, ...]``. It replaces what it overlaps with.
        start: int32 ``[]``.
        total: Number of places. Those without a step are zeros.
    """
    past = lax.stop_gradient(past.decoded(new.dtype) if isinstance(past, Slots) else past)
    places = jnp.zeros((*new.shape[:2], total, *new.shape[3:]), new.dtype)
    places = lax.dynamic_update_slice_in_dim(places, past, 0, axis=2)
    return lax.dynamic_update_slice_in_dim(places, new, start, axis=2)
