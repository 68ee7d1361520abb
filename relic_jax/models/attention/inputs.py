"""The records that every attention kernel takes.

Axis sizes: B environments, H heads, D numbers per head, K steps of a block, Q queries, S slots of the context.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from relic_jax.models.kv_formats import Slots

MASKED = -1e30
"""Score of a masked key. It is finite, so differences of masked scores are finite too."""


class Sink(NamedTuple):
    """The extra attention slot of one layer, which every step sees.

    A sink gives attention somewhere to put probability mass if nothing in the context is worth attending to:
    ``softmax([q·k_s, q·k_1 … q·k_t] / sqrt(D))`` (Elawady et al. 2024, arXiv 2410.02751, section 3.2).

    Attributes:
        key: ``[H, D]``. It is never rotated.
        value: ``[H, D]``.
    """

    key: jax.Array
    value: jax.Array


class Context(NamedTuple):
    """Keys and values of past steps, as one layer of the cache stores them.

    Attributes:
        keys: Slots of shape ``[B, H, S, D]``, rotated.
        values: Slots of shape ``[B, H, S, D]``.
        episodes: int32 ``[B, S]``, index of the episode of each slot. It ascends over the filled slots.
        length: int32 ``[]``, number of filled slots. They are the first ones.
    """

    keys: Slots
    values: Slots
    episodes: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        """S, the number of slots. It can be 0."""
        return self.episodes.shape[1]


class AttentionInputs(struct.PyTreeNode):
    """Inputs of one attention layer: queries, a block of consecutive steps, and a context of earlier steps.

    A block kernel computes attention for Q steps of a block of K. Each query sees all filled slots of the context, the
    steps of the block up to its own, and the sink. Gradients flow to ``query``, ``key``, ``value`` and ``sink``, never
    to ``context``. An empty context and the whole trial as the block give gradients through everything.

    A decode kernel computes a single step (Q = K = 1) whose key and value are already the last filled slot of the
    context. It reads them there and not in ``key`` and ``value``. It is not differentiated.

    Both return ``[B, H, Q, D]`` in the dtype of ``query``. Scores are ``q·k / sqrt(D)``.

    Attributes:
        query: ``[B, H, Q, D]``, rotated. Queries of the steps ``start … start + Q − 1`` of the block.
        key: ``[B, H, K, D]``, rotated. Keys of all steps of the block.
        value: ``[B, H, K, D]``. Values of all steps of the block.
        episodes: int32 ``[B, K]``, index of the episode of each step of the block, ascending.
        context: The steps before the block.
        sink: The sink of the layer, or None.
        within_episode: Whether a step sees only the steps of its own episode, and the sink. Static.
        start: int32 ``[]``, the step of the block that the first query belongs to.
        valid: int32 ``[]``, number of steps of the block that matter. The output of later steps is 0 and they get no
            gradient. None if all steps matter.
        window: Number of last steps that a step sees, its own included. None if it sees all of them. For a decode
            kernel int32 ``[]`` or ``[B]``, for a block kernel a Python integer.
        axis: Name of the device axis over which the slots of the context are split (`sharded.ShardedCache`). Everything
            else, and the output, is equal on all devices of the axis. None if the context is whole. Static.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    episodes: jax.Array
    context: Context
    sink: Sink | None
    within_episode: bool = struct.field(pytree_node=False)
    start: jax.Array | int = 0
    valid: jax.Array | None = None
    window: jax.Array | int | None = None
    axis: str | None = struct.field(pytree_node=False, default=None)

    def zero_invalid(self, out: jax.Array) -> jax.Array:
        """Return ``out`` ``[B, H, Q, D]`` with zeros, and no gradient, at the steps after the first ``valid``."""
        if self.valid is None:
            return out
        return jnp.where((self.start + jnp.arange(out.shape[2]) < self.valid)[:, None], out, 0)
