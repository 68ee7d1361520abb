"""Memo: summaries in place of the segments that they summarize.

Gupta et al. 2025, "Memo: Training Memory-Efficient Embodied Agents with Reinforcement Learning", arXiv 2510.19732. A
trial is divided into segments of S = `summary_every` steps. After the last step of a segment, P = `summary_tokens`
learned tokens attend to the segment, to the tokens before them and to all earlier summaries. Their keys and values
replace those of the segment. A step attends to all summaries and to the steps of its own segment up to itself.

In a block of steps, gradients flow through the summaries of the block.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.config.policy import TransformerConfig
from relic_jax.models import cache as kv
from relic_jax.models import kv_formats
from relic_jax.models.attention import Sink
from relic_jax.models.attention.reference import einsum
from relic_jax.models.kv_formats import Slots
from relic_jax.models.segments import Layout, line, softmax
from relic_jax.models.summaries import Summaries, SummaryCache
from relic_jax.models.transformer import Block, Transformer, empty_cache
from relic_jax.types import Span


class Rows(NamedTuple):
    """Steps of a block, and the summary tokens of its segments.

    Attributes:
        steps: ``[B, Q, ...]``, or keys, values or queries ``[B, H, Q, D]``.
        tokens: ``[B, G·P, ...]``, P for each of the block's first G segments, or ``[B, H, G·P, D]``.
    """

    steps: jax.Array
    tokens: jax.Array

    @classmethod
    def of(cls, x: jax.Array, steps: int, axis: int = 1) -> Rows:
        """Split an array into its first ``steps`` rows and the tokens."""
        return cls(*jnp.split(x, [steps], axis=axis))

    def joined(self, axis: int = 1) -> jax.Array:
        """Return one array, with the tokens after the steps."""
        return jnp.concatenate(self, axis=axis)

    def queried(self, span: Span | None, tokens: bool) -> Rows:
        """Return the steps of ``span``, or all, and the tokens, or none."""
        return Rows(self.steps if span is None else span.of(self.steps), self.tokens if tokens else self.tokens[:, :0])


class MemoBlock(Block):
    """A block of the transformer whose attention is that of Memo."""

    def __call__(  # type: ignore[override]
        self,
        x: Rows,
        episodes: Rows,
        past: Summaries,
        sink: Sink | None,
        keep: jax.Array | float,
        query_span: Span | None,
        is_last: bool,
    ) -> tuple[Rows, Rows, Rows]:
        """Apply the block to Q steps and the summary tokens of their segments.

        Args:
            x: Steps ``[B, Q, d]`` and tokens ``[B, G·P, d]``.
            episodes: The index of the episode of each, int32.
            past: The steps before.
            sink: The sink of this layer.
            keep: 1, or 0 if depth dropout skips the block.
            query_span: The steps that are returned. None for all.
            is_last: Whether this is the last block. It returns no tokens.

        Returns:
            The rows after the block, keys and values ``[B, H, ..., D]`` of all rows.
        """
        steps = x.steps.shape[1]
        normalized = self.attention_norm(x.joined())
        key, value = (Rows.of(part, steps, 2) for part in self.key_value(normalized, episodes.joined()))
        parts = Rows.of(normalized, steps), x, episodes
        y, x, episodes = (rows.queried(query_span, not is_last) for rows in parts)
        query = self.rotated(self.split_heads(self.q_proj(y.joined())), episodes.joined())
        queries = Rows.of(query, x.steps.shape[1], 2)
        start = 0 if query_span is None else query_span.start
        attended = attend(queries, key, value, past, sink, start, self.config)
        after = self.residual(x.joined(), attended.joined(2), keep)
        return Rows.of(after, x.steps.shape[1]), key, value

    def step(
        self, x: jax.Array, episode: jax.Array, past: Summaries, sink: Sink | None, keep: jax.Array, slot: jax.Array
    ) -> tuple[jax.Array, Slots, Slots]:
        """Apply the block to a single step.

        Args:
            x: ``[B, 1, d]``.
            episode: int32 ``[B, 1]``.
            past: The steps before.
            sink: The sink of this layer.
            keep: 1, or 0 if depth dropout skips the block.
            slot: int32 ``[]``, the step's slot in its segment.

        Returns:
            x after the block, and the slots of the segment with the step in them.
        """
        y, (size, tokens) = self.attention_norm(x), sizes(self.config)
        key, value = self.key_value(y, episode)
        query = self.rotated(self.split_heads(self.q_proj(y)), episode)[:, :, None]
        keys, values = kv_formats.write(past.keys, key, slot), kv_formats.write(past.values, value, slot)
        own_key, own_value = (part.decoded(query.dtype)[:, :, None] for part in (keys, values))
        old_key, old_value = (part.decoded(query.dtype) for part in (past.summary_keys, past.summary_values))
        seen = (jnp.arange(size) <= slot)[None]
        usable = (jnp.arange(old_key.shape[2]) < past.length // size * tokens)[None, None]
        out = attention(query, (own_key, old_key), (own_value, old_value), seen, usable, sink)
        return self.residual(x, out[:, :, 0], keep), keys, values


class Memo(Transformer):
    """The transformer with the blocks of Memo and the learned summary tokens."""

    block: ClassVar[type[Block]] = MemoBlock
    static_arguments: ClassVar[tuple[int, ...]] = (7,)  # is_last

    def setup(self) -> None:
        """Declare the parameters."""
        super().setup()
        shape = (sizes(self.config)[1], self.config.width)
        self.summary_tokens = self.param("summary_tokens", nn.initializers.normal(0.02), shape, jnp.float32)

    def tokens(self, episode: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the tokens of G segments ``[B, G·P, d]`` and their episodes.

        Args:
            episode: int32 ``[B, G]``, index of the episode of the last step of each segment.
        """
        count, width = self.summary_tokens.shape
        batch, groups = episode.shape
        tokens = jnp.broadcast_to(self.summary_tokens.astype(self.config.dtype), (batch, groups, count, width))
        return tokens.reshape(batch, groups * count, width), jnp.repeat(episode, count, axis=1)

    def __call__(
        self,
        x: jax.Array,
        first: jax.Array,
        cache: SummaryCache,  # type: ignore[override]
        *,
        decode: bool = False,
        valid: jax.Array | None = None,
        window: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        query_span: Span | None = None,
    ) -> tuple[jax.Array, SummaryCache]:
        """Apply the network to Q steps that follow those in the cache. See `Transformer.__call__`.

        A block of a single step is computed as when acting, which leaves out the tokens if the cache is not used.
        """
        del valid, window
        position, episode = kv.index_steps(cache, first)
        keep = self.depth_coins(dropout_key)
        sinks = self.sinks(keep)
        x = x.astype(self.config.dtype)
        if self.config.step_embedding:
            x = x + self.embed_steps(position)
        if decode or (cache.slots and x.shape[1] == 1):
            return self.one_step(x, position, episode, cache, sinks, keep)
        before, steps, (size, _) = cache.filled, x.shape[1], sizes(self.config)
        offset = before % size if cache.slots else 0
        groups = Layout.of(steps, size, offset).segments
        groups -= 0 if cache.slots else 1  # only later blocks read the last summary
        ends = jnp.minimum((jnp.arange(groups) + 1) * size - 1 - offset, steps - 1)
        tokens, token_episode = self.tokens(episode[:, ends])
        rows, keys, values = self.apply_blocks(
            Rows(x, tokens), Rows(episode, token_episode), cache, before, sinks, keep, query_span
        )
        if cache.slots:
            new = ([k.steps for k in keys], [v.steps for v in values])
            filled = cache.with_block(*new, position, episode, rows.steps)
            assert isinstance(filled, SummaryCache)
            cache = filled.with_summaries([k.tokens for k in keys], [v.tokens for v in values], before)
        return self.norm(rows.steps), cache

    def apply_blocks(
        self,
        x: Rows,
        episodes: Rows,
        cache: SummaryCache,
        length: jax.Array,
        sinks: list[Sink | None],
        keep: jax.Array,
        query_span: Span | None = None,
    ) -> tuple[Rows, list[Rows], list[Rows]]:
        """Apply all blocks to rows that follow the first ``length`` steps of the cache.

        Returns:
            The rows without tokens, and keys and values of all rows, of every layer.
        """
        keys, values, last = [], [], self.config.layers - 1
        block: Any
        for layer, block in enumerate(self.blocks):
            past, span = cache.past(layer)._replace(length=length), query_span if layer == last else None
            x, key, value = block(x, episodes, past, sinks[layer], keep[layer], span, layer == last)
            keys.append(key)
            values.append(value)
        return x, keys, values

    def one_step(
        self,
        x: jax.Array,
        position: jax.Array,
        episode: jax.Array,
        cache: SummaryCache,
        sinks: list[Sink | None],
        keep: jax.Array,
    ) -> tuple[jax.Array, SummaryCache]:
        """Return the hidden state of a single step ``[B, 1, d]``, and the cache, with a summary if a segment ends."""
        block: Any
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            x, key, value = block.step(x, episode, cache.past(layer), sinks[layer], keep[layer], cache.next_slot)
            keys.append(key)
            values.append(value)
        after = cache.with_step(keys, values, position, episode)
        assert isinstance(after, SummaryCache)
        tokens, token_episode = self.tokens(episode)
        none = Rows(x[:, :0], tokens), Rows(episode[:, :0], token_episode)

        def summary(memo: Memo, cache: SummaryCache) -> tuple[list[jax.Array], list[jax.Array]]:
            _, keys, values = memo.apply_blocks(*none, cache, cache.filled - cache.slots, sinks, keep)
            return [k.tokens for k in keys], [v.tokens for v in values]

        def nothing(memo: Memo, cache: SummaryCache) -> tuple[list[jax.Array], list[jax.Array]]:
            del memo, cache
            shape = (x.shape[0], self.config.heads, tokens.shape[1], self.config.head_width)
            zeros = [jnp.zeros(shape, x.dtype)] * self.config.layers
            return zeros, zeros

        ends = after.filled % after.slots == 0
        return self.norm(x), after.with_summary(*nn.cond(ends, summary, nothing, self, after), x)


def sizes(cfg: TransformerConfig) -> tuple[int, int]:
    """Return S and P, the steps of a segment and the tokens of a summary."""
    assert cfg.summary_every is not None and cfg.summary_tokens is not None
    return cfg.summary_every, cfg.summary_tokens


def empty_memory(cfg: TransformerConfig, batch: int, capacity: int) -> kv.KVCache:
    """Return an empty memory with room for ``capacity`` steps of ``batch`` environments."""
    size, tokens = sizes(cfg)
    segment = empty_cache(cfg, batch, size if capacity else 0)
    return SummaryCache.with_room(segment, -(-capacity // size), tokens)


def attend(
    queries: Rows,
    key: Rows,
    value: Rows,
    past: Summaries,
    sink: Sink | None,
    start: jax.Array | int,
    cfg: TransformerConfig,
) -> Rows:
    """Compute attention for the steps ``start … start + Q − 1`` of a block, and for its tokens if there are queries.

    Args:
        queries: ``[B, H, Q, D]`` and ``[B, H, G·P, D]`` or ``[B, H, 0, D]``.
        key: Keys of all rows of the block.
        value: Values of all rows of the block.
        past: The steps before the block.
        sink: The sink of the layer.
        start: int32 ``[]``.
        cfg: The architecture.

    Returns:
        The output of attention, in the shape of the queries.
    """
    size, tokens = sizes(cfg)
    length = past.length if past.keys.data.shape[2] else 0
    offset, count = length % size, queries.steps.shape[2]
    block = Layout.of(key.steps.shape[2], size, offset)
    segment, layout = block.queries(start, count)
    old = past.summary_keys.decoded(key.tokens.dtype), past.summary_values.decoded(value.tokens.dtype)
    summaries = [jnp.concatenate([lax.stop_gradient(x), y.tokens], 2) for x, y in zip(old, (key, value), strict=True)]
    places = [
        line(slots, rows.steps, offset, (block.segments + layout.segments) * size)
        for slots, rows in ((past.keys, key), (past.values, value))
    ]

    def grouped(query: jax.Array, first: jax.Array | int, seen: jax.Array, new: jax.Array) -> jax.Array:
        """Attend with queries [B, H, N, A, D] to segments from `first` on, and to `new` [N, A] tokens of the block."""
        groups = query.shape[2]

        def of(place: jax.Array) -> jax.Array:
            part = lax.dynamic_slice_in_dim(place, first * size, groups * size, axis=2)
            return part.reshape(*part.shape[:2], groups, size, part.shape[3])

        keys, values = ((of(place), summary) for place, summary in zip(places, summaries, strict=True))
        filled = jnp.arange(old[0].shape[2]) < length // size * tokens
        usable = jnp.arange(key.tokens.shape[2]) < new[..., None]
        usable = jnp.concatenate([jnp.broadcast_to(filled, (*new.shape, len(filled))), usable], axis=-1)
        return attention(query, keys, values, seen, usable, sink)

    result = queries
    if count:
        before = jnp.broadcast_to((segment + jnp.arange(layout.segments))[:, None] * tokens, (layout.segments, size))
        out = grouped(layout.split(queries.steps), segment, jnp.tri(size, dtype=bool), before)
        result = result._replace(steps=layout.join(out, count))
    if queries.tokens.shape[2]:
        query = queries.tokens.reshape(*queries.tokens.shape[:2], -1, tokens, queries.tokens.shape[3])
        own = jnp.arange(queries.tokens.shape[2]).reshape(-1, tokens) + 1  # all before it, and itself
        out = grouped(query, 0, jnp.ones((tokens, size), bool), own)
        result = result._replace(tokens=out.reshape(queries.tokens.shape))
    return result


def attention(
    query: jax.Array,
    keys: tuple[jax.Array, jax.Array],
    values: tuple[jax.Array, jax.Array],
    seen: jax.Array,
    usable: jax.Array,
    sink: Sink | None,
) -> jax.Array:
    """Attend to the steps of one segment and to summaries.

    Args:
        query: ``[B, H, N, A, D]``, A queries for each of N segments.
        keys: Keys of the segments' steps ``[B, H, N, S, D]``, and of all summaries ``[B, H, C, D]``.
        values: The same.
        seen: bool ``[A, S]``, the steps that each query sees.
        usable: bool ``[N, A, C]``, the summaries that it sees.
        sink: The sink of the layer.

    Returns:
        ``[B, H, N, A, D]`` in the dtype of the queries.
    """
    steps = keys[0].shape[3]
    scores = [einsum("bhnqd,bhnkd->bhnqk", query, keys[0]), einsum("bhnqd,bhkd->bhnqk", query, keys[1])]
    visible = [jnp.broadcast_to(seen, (*usable.shape[:2], steps)), usable]
    weights, sink_out = softmax(jnp.concatenate(scores, -1), jnp.concatenate(visible, -1), query, sink)
    own, summaries = jnp.split(weights.astype(query.dtype), [steps], axis=-1)
    out = einsum("bhnqk,bhnkd->bhnqd", own, values[0]) + einsum("bhnqk,bhkd->bhnqd", summaries, values[1])
    return (out + sink_out).astype(query.dtype)
