"""Transformer-XL: attention to the current segment and the one before, with relative positions.

Dai et al. 2019, arXiv 1901.02860, section 3. A trial is divided into segments of M = `memory_steps` steps. A step sees
the steps of its segment up to itself, and all M steps of the segment before. The gradient stops at the layer inputs of
the segment before. Its keys and values are projected from them, so it reaches the projections.

The score of query i and key j is ``(q_i + u)·k_j + (q_i + v)·r_{i−j}`` with learned u and v, and r projected from the
sinusoids of the distance (equation 5 of the paper). The other parts are those of `transformer`.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relic_jax.config.policy import TransformerConfig
from relic_jax.models.attention import Context
from relic_jax.models.attention.reference import einsum
from relic_jax.models.cache import KVCache
from relic_jax.models.kv_formats import Slots
from relic_jax.models.ring import RingCache, slot_axis
from relic_jax.models.segments import Layout, line, softmax
from relic_jax.models.transformer import Block, BlockInputs, Linear, Transformer, empty_cache, kernel_init


class TwoSegments(RingCache):
    """A ring of 2·M slots: the current segment and the one before, in halves that take turns."""

    def context(self, layer: int) -> Context:
        """Return the slots of the segment before, then those of the current one.

        `Context.length` counts all steps of the trial so far.
        """
        current = self.filled // max(self.slots // 2, 1) % 2  # the half of the current segment

        def ordered(x: jax.Array) -> jax.Array:
            first, second = jnp.split(x, 2, slot_axis(x))
            return jnp.where(current == 1, x, jnp.concatenate([second, first], slot_axis(x)))

        keys, values, episodes = jax.tree.map(ordered, (self.keys[layer], self.values[layer], self.episodes))
        return Context(keys, values, episodes, self.filled)


class Queries(NamedTuple):
    """The two queries of each step, and what the second one is compared with.

    Attributes:
        content: ``q + u``, ``[B, H, Q, D]``, rotated.
        position: ``q + v``, ``[B, H, Q, D]``.
        positions: r of the distances 0 … 2·M − 1, ``[H, 2·M, D]``.
    """

    content: jax.Array
    position: jax.Array
    positions: jax.Array


class XLBlock(Block):
    """A block of the transformer whose attention is that of Transformer-XL."""

    def setup(self) -> None:
        """Declare the parameters."""
        super().setup()
        cfg = self.config
        dtype, shape = jnp.dtype(cfg.dtype), (cfg.heads, cfg.head_width)
        self.position_proj = Linear(cfg.width, use_bias=False, dtype=dtype, kernel_init=kernel_init(cfg))
        self.content_bias = self.param("content_bias", nn.initializers.normal(0.02), shape, jnp.float32)
        self.position_bias = self.param("position_bias", nn.initializers.normal(0.02), shape, jnp.float32)

    def queries(self, y: jax.Array, inputs: BlockInputs) -> Queries:
        """Return the queries of normalized steps ``[B, q, d]``."""
        query, size = self.split_heads(self.q_proj(y)), memory_steps(self.config)
        content, position = (
            query + bias.astype(query.dtype)[:, None] for bias in (self.content_bias, self.position_bias)
        )
        positions = self.split_heads(self.position_proj(jnp.asarray(sinusoids(2 * size, y.shape[-1]), y.dtype)[None]))
        return Queries(self.rotated(content, inputs.episodes, inputs.query_span), position, positions[0])

    def __call__(self, x: jax.Array, inputs: BlockInputs) -> tuple[jax.Array, Any, Any]:
        """Apply the block to Q steps. See `Block.__call__`. `TwoSegments.context` explains the context of a block."""
        key, value = self.key_value(self.attention_norm(x), inputs.episodes)
        before = self.key_value(self.attention_norm(lax.stop_gradient(x)), inputs.episodes)
        x = inputs.queried(x)
        queries = self.queries(self.attention_norm(x), inputs)
        if inputs.slot is None:
            attended = attend(queries, (key, value), before, inputs, within_episode=not self.config.inter_episode)
            return self.residual(x, attended, inputs.keep), key, value
        filled = inputs.context_with(key, value)
        attended = attend_step(queries, filled, inputs, within_episode=not self.config.inter_episode)
        return self.residual(x, attended, inputs.keep), filled.keys, filled.values


class TransformerXL(Transformer):
    """The transformer with the blocks of Transformer-XL."""

    block: ClassVar[type[Block]] = XLBlock


def memory_steps(cfg: TransformerConfig) -> int:
    """Return M, the number of steps of a segment."""
    assert cfg.memory_steps is not None
    return cfg.memory_steps


def empty_memory(cfg: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """Return an empty memory, for any number of steps if ``capacity`` is not 0."""
    return TwoSegments.of(empty_cache(cfg, batch, 2 * memory_steps(cfg) if capacity else 0))


def sinusoids(count: int, width: int) -> np.ndarray:
    """Return the sinusoids of the distances 0 … count − 1, float64 ``[count, width]``."""
    half = -(-width // 2)
    angle = np.arange(count)[:, None] * 10_000.0 ** (-np.arange(half) / half)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width]


def attend(
    queries: Queries,
    own: tuple[jax.Array, jax.Array],
    before: tuple[jax.Array, jax.Array],
    inputs: BlockInputs,
    *,
    within_episode: bool,
) -> jax.Array:
    """Compute attention for a block of steps.

    Args:
        queries: Queries of the q steps that are returned.
        own: Keys and values of all Q steps of the block, ``[B, H, Q, D]`` each.
        before: The same numbers with another gradient, for queries of the next segment.
        inputs: The other inputs of the block. `TwoSegments.context` explains the context.
        within_episode: Whether a step sees only the steps of its own episode, and the sink.

    Returns:
        ``[B, H, q, D]`` in the dtype of the queries.
    """
    context = inputs.context
    size, steps, count = queries.positions.shape[1] // 2, own[0].shape[2], queries.content.shape[2]
    length = context.length if context.capacity else 0
    offset = length % size
    block = Layout.of(steps, size, offset)
    segment, layout = block.queries(inputs.start, count)

    def segments(past: Slots | jax.Array, new: jax.Array) -> jax.Array:
        """Return segments [B, H, N + 1, M, ...]: the one before that of the first query, and those of the queries."""
        places = line(past, new, size + offset, (block.segments + layout.segments + 1) * size)
        needed = lax.dynamic_slice_in_dim(places, segment * size, (layout.segments + 1) * size, axis=2)
        return needed.reshape(*new.shape[:2], layout.segments + 1, size, *new.shape[3:])

    def pairs(earlier: jax.Array, current: jax.Array) -> jax.Array:
        """Return [B, H, N, 2·M, ...]: each query's segment and the one before."""
        return jnp.concatenate([earlier[:, :, :-1], current[:, :, 1:]], axis=3)

    past = context.keys, context.values
    key, value = (pairs(segments(p, b), segments(p, o)) for p, b, o in zip(past, before, own, strict=True))
    content, position = layout.split(queries.content), layout.split(queries.position)
    scores = einsum("bhnqd,bhnkd->bhnqk", content, key)
    scores += shifted(einsum("bhnqd,hkd->bhnqk", position, queries.positions[:, ::-1]))
    place = jnp.arange(2 * size)
    step = length - offset + size * (segment - 1 + jnp.arange(layout.segments)[:, None]) + place  # [N, 2·M]
    visible = (step >= 0)[:, None] & (place <= size + jnp.arange(size)[:, None])
    if within_episode:
        episode = segments(context.episodes[:, None], inputs.episodes[:, None])
        visible = visible & (episode[:, :, 1:, :, None] == pairs(episode, episode)[:, :, :, None])
    weights, sink_out = softmax(scores, visible, content, inputs.sink)
    out = einsum("bhnqk,bhnkd->bhnqd", weights.astype(value.dtype), value) + sink_out
    return layout.join(out.astype(content.dtype), count)


def attend_step(queries: Queries, context: Context, inputs: BlockInputs, *, within_episode: bool) -> jax.Array:
    """Compute attention for a single step whose key and value are in the context.

    Args:
        queries: Queries of the step (Q = 1).
        context: The ring with the step, see `RingCache.step_context`.
        inputs: The other inputs of the block.
        within_episode: As in `attend`.

    Returns:
        ``[B, H, 1, D]`` in the dtype of the queries.
    """
    count, dtype, slot = context.capacity, queries.content.dtype, inputs.slot
    assert slot is not None
    content = queries.content[:, :, None]
    key, value = (x.decoded(dtype) for x in (context.keys, context.values))
    scores = einsum("bhnqd,bhkd->bhnqk", content, key)
    by_distance = einsum("bhqd,hkd->bhqk", queries.position, queries.positions[:, ::-1])
    scores += jnp.roll(by_distance, slot + 1, axis=-1)[:, :, None]
    distance = (slot - jnp.arange(count)) % count
    visible = ((distance < context.length) & (distance <= count // 2 + slot % (count // 2)))[None, None]
    if within_episode:
        visible = visible & (context.episodes == inputs.episodes)[:, None, None]
        visible = visible[:, :, None]
    weights, sink_out = softmax(scores, visible, content, inputs.sink)
    out = einsum("bhnqk,bhkd->bhnqd", weights.astype(value.dtype), value) + sink_out
    return out[:, :, 0].astype(dtype)


def shifted(scores: jax.Array) -> jax.Array:
    """Shift scores by descending distance ``[..., M, 2·M]``: of row i, place j becomes that of the distance M + i − j.

    Places with a negative distance are arbitrary.
    """
    rows, columns = scores.shape[-2:]
    padded = jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(1, 0)])
    flat = padded.reshape(*scores.shape[:-2], (columns + 1) * rows)
    return flat[..., rows:].reshape(scores.shape)
