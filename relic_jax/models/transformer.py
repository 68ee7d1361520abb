"""The ReLIC transformer: pre-norm blocks, sinks, two position encodings, an explicit cache.

Elawady et al. 2024, arXiv 2410.02751. Flax Linen holds the parameters. The computation is in the plain functions of
`attention` and `cache`. The same module takes a single step (``decode=True``) or a block of steps. Both agree to
rounding, for every kind of sink and wherever episodes start.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.config.policy import SinkKind as SinkKind
from relic_jax.config.policy import TransformerConfig
from relic_jax.models import cache as kv
from relic_jax.models import kv_formats
from relic_jax.models.attention import AttentionInputs, Context, Sink, rotate, select
from relic_jax.models.cache import KVCache
from relic_jax.models.gates import Gate
from relic_jax.models.ring import RingCache
from relic_jax.models.sharded import own_steps
from relic_jax.types import Span

ATTENTION = "attention"
"""Collection that holds the `AttentionInputs` of every block, if it is mutable in `apply` (`evaluation.attention`)."""


def kernel_init(cfg: TransformerConfig) -> nn.initializers.Initializer:
    """Return the initializer of linear layers, see `TransformerConfig.init`."""
    return nn.initializers.lecun_normal() if cfg.init == "fan_in" else nn.initializers.normal(0.02)


class RMSNorm(nn.Module):
    """Root-mean-square norm with statistics in float32 (Zhang & Sennrich 2019, arXiv 1910.07467).

    `flax.linen.RMSNorm` has the same parameter but multiplies ``x · (rsqrt · scale)``, and this module multiplies
    ``(x · rsqrt) · scale``. Trained policies would differ in the last bit, and resumed runs would not be bit for bit.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis of ``[..., d]``."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)
        return (y * scale).astype(x.dtype)


class Linear(nn.Dense):
    """`nn.Dense` over rows. On CPU, XLA takes 2.5 times as long for the gradient of the product over ``[B, Q, d]``."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map ``[..., d]`` to ``[..., features]``."""
        rows = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return rows.reshape(*inputs.shape[:-1], self.features)


class BlockInputs(struct.PyTreeNode):
    """Inputs of one block, except for the Q steps that it maps.

    Attributes:
        episodes: int32 ``[B, Q]``, index of the episode of each step.
        context: The steps before. For a single step, see `KVCache.step_context`.
        sink: The sink of this layer.
        keep: 1, or 0 if depth dropout skips the block.
        slot: int32 ``[]``, the cache slot to which a single step (Q = 1) is written. None for a block of steps.
        valid: See `AttentionInputs`.
        window: See `AttentionInputs`. Only a single step reads it.
        query_span: The steps that are returned, q of them. None for all.
        axis: See `AttentionInputs`.
        stores: bool ``[]``, whether this device stores a single step. None if every device does.
        own: The steps of the block that this device maps, if others map the rest (`sharded.own_steps`). None for all.
    """

    episodes: jax.Array
    context: Context
    sink: Sink | None
    keep: jax.Array
    slot: jax.Array | None
    valid: jax.Array | None
    window: jax.Array | None
    query_span: Span | None
    axis: str | None = struct.field(pytree_node=False, default=None)
    stores: jax.Array | None = None
    own: Span | None = None

    @property
    def start(self) -> jax.Array | int:
        """int32 ``[]``, index of the first step that is returned."""
        return 0 if self.queries is None else self.queries.start

    @property
    def queries(self) -> Span | None:
        """The steps that are returned. None for all."""
        return self.own if self.query_span is None else self.query_span

    @property
    def own_episodes(self) -> jax.Array:
        """int32 ``[B, n]``, index of the episode of each step that is mapped."""
        return self.episodes if self.own is None else self.own.of(self.episodes)

    def gathered(self, x: jax.Array, axis: int) -> jax.Array:
        """Return all steps of the block from the devices that map them, along an axis."""
        return x if self.own is None else lax.all_gather(x, self.axis, axis=axis, tiled=True)

    def queried(self, x: jax.Array) -> jax.Array:
        """Return the steps of ``query_span``: ``[B, Q, d]`` → ``[B, q, d]``."""
        return x if self.query_span is None else self.query_span.of(self.gathered(x, 1))

    def context_with(self, key: jax.Array, value: jax.Array) -> Context:
        """Return the context after writing a single step, keys and values ``[B, H, 1, D]``, to its slot."""
        assert self.slot is not None
        keys = kv_formats.write(self.context.keys, key, self.slot, self.stores)
        values = kv_formats.write(self.context.values, value, self.slot, self.stores)
        return self.context._replace(keys=keys, values=values)


class Block(nn.Module):
    """A pre-norm block: RMSNorm → attention → residual → RMSNorm → gated MLP → residual."""

    config: TransformerConfig

    def setup(self) -> None:
        """Declare the parameters."""
        cfg = self.config

        def linear(features: int) -> Linear:
            dtype = jnp.dtype(cfg.dtype)
            return Linear(features, use_bias=False, dtype=dtype, kernel_init=kernel_init(cfg))

        self.attention_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(cfg.width) for _ in range(4))
        if cfg.gate == "gru":
            self.attention_gate, self.mlp_gate = Gate(kernel_init(cfg)), Gate(kernel_init(cfg))
        self.gate_proj, self.up_proj, self.down_proj = linear(cfg.mlp_width), linear(cfg.mlp_width), linear(cfg.width)
        shape = (cfg.heads, cfg.head_width)
        if cfg.sink in ("kv", "kv0"):
            self.sink_key = self.param("sink_key", nn.initializers.zeros, shape, jnp.float32)
        if cfg.sink in ("kv", "k0v"):
            self.sink_value = self.param("sink_value", nn.initializers.zeros, shape, jnp.float32)

    def learned_sink(self) -> Sink | None:
        """Return the sink in the parameters of this block. None for the kinds "token" and "none"."""
        if self.config.sink in ("none", "token"):
            return None
        zeros = jnp.zeros((self.config.heads, self.config.head_width), jnp.float32)
        return Sink(
            self.sink_key if self.config.sink in ("kv", "kv0") else zeros,
            self.sink_value if self.config.sink in ("kv", "k0v") else zeros,
        )

    def split_heads(self, x: jax.Array) -> jax.Array:
        """Reshape ``[B, Q, d]`` to ``[B, H, Q, D]``."""
        return x.reshape(*x.shape[:2], self.config.heads, self.config.head_width).swapaxes(1, 2)

    def key_value(self, y: jax.Array, episodes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return keys and values ``[B, H, Q, D]`` of normalized steps ``[B, Q, d]``, rounded to the cache's format."""
        key, value = (self.split_heads(p(y)) for p in (self.k_proj, self.v_proj))
        key, kv_format = self.rotated(key, episodes), self.config.cache_format
        return kv_formats.rounded(key, kv_format), kv_formats.rounded(value, kv_format)

    def rotated(self, x: jax.Array, episodes: jax.Array, span: Span | None = None) -> jax.Array:
        """Rotate ``[B, H, Q, D]`` by the episodes of its steps, or of the steps of ``span``."""
        if not self.config.episode_rope:
            return x
        return rotate(x, episodes if span is None else span.of(episodes))

    def mlp(self, x: jax.Array) -> jax.Array:
        """Return ``down(gelu(gate(norm x)) · up(norm x))``, ``[B, Q, d]``."""
        y = self.mlp_norm(x)
        return self.down_proj(nn.gelu(self.gate_proj(y), approximate=True) * self.up_proj(y))

    def residual(self, x: jax.Array, attended: jax.Array, keep: jax.Array | float) -> jax.Array:
        """Add both branches to x ``[B, Q, d]``. ``attended`` is the output of attention, ``[B, H, Q, D]``."""
        return self.add_branches(x, self.o_proj(attended.swapaxes(1, 2).reshape(x.shape)), keep)

    def add_branches(self, x: jax.Array, attended: jax.Array, keep: jax.Array | float) -> jax.Array:
        """Add the projected output of attention ``[..., d]`` and that of the MLP to x ``[..., d]``, or gate them."""
        if self.config.gate == "none":
            x = x + keep * attended
            return x + keep * self.mlp(x)
        x = x + keep * (self.attention_gate(x, attended) - x)
        return x + keep * (self.mlp_gate(x, self.mlp(x)) - x)

    def sink_token(self, token: jax.Array, keep: jax.Array | float) -> tuple[jax.Array, Sink]:
        """Apply the block to the sink token.

        The token attends only to itself, so the output of attention is its value. Its key is not rotated, because the
        angle of index 0 is 0.

        Args:
            token: ``[d]``.
            keep: 1, or 0 if depth dropout skips the block.

        Returns:
            The token after the block ``[d]`` and the sink of this layer.
        """
        y = self.attention_norm(token)[None, None]
        key, value = self.split_heads(self.k_proj(y)), self.split_heads(self.v_proj(y))
        token = self.add_branches(token[None, None], self.o_proj(self.v_proj(y)), keep)[0, 0]
        return token, Sink(key[0, :, 0], value[0, :, 0])

    def __call__(self, x: jax.Array, inputs: BlockInputs) -> tuple[jax.Array, Any, Any]:
        """Apply the block to Q steps.

        Args:
            x: ``[B, Q, d]``.
            inputs: Everything else.

        Returns:
            x ``[B, Q or q, d]``, keys and values. For a single step, these are the slots of the cache with the step
            in them, else those of the block, ``[B, H, Q, D]``.
        """
        cfg, is_block = self.config, inputs.slot is None
        y = self.attention_norm(x)
        key, value = (inputs.gathered(z, 2) for z in self.key_value(y, inputs.own_episodes))
        x, y = inputs.queried(x), inputs.queried(y)
        attention = AttentionInputs(
            self.rotated(self.split_heads(self.q_proj(y)), inputs.episodes, inputs.queries),
            key,
            value,
            inputs.episodes,
            inputs.context,
            inputs.sink,
            within_episode=not cfg.inter_episode,
            start=inputs.start,
            valid=inputs.valid,
            window=cfg.window if is_block else inputs.window,
            axis=inputs.axis,
        )
        self.sow(ATTENTION, "inputs", attention)  # stored only if the caller makes this collection mutable
        kernel = select(cfg, decode=not is_block, kv_format=inputs.context.keys.kv_format)
        if is_block:  # the caller writes the keys and values, if there is room
            return self.residual(x, kernel.attend(attention), inputs.keep), key, value
        filled = inputs.context_with(key, value)
        attended = kernel.attend(attention.replace(context=filled))
        return self.residual(x, attended, inputs.keep), filled.keys, filled.values


class Transformer(nn.Module):
    """The transformer: maps a block of embedded steps, and the cache of earlier steps, to hidden states."""

    config: TransformerConfig
    block: ClassVar[type[Block]] = Block
    static_arguments: ClassVar[tuple[int, ...]] = ()

    def setup(self) -> None:
        """Declare the parameters."""
        cfg = self.config
        block = nn.remat(self.block, static_argnums=self.static_arguments) if cfg.remat else self.block
        self.blocks = [block(cfg) for _ in range(cfg.layers)]
        self.norm = RMSNorm()
        if cfg.step_embedding:
            init = nn.initializers.normal(0.02)
            self.step_embedding = self.param("step_embedding", init, (cfg.max_positions, cfg.width), jnp.float32)
        if cfg.sink == "token":
            self.sink_token = self.param("sink_token", nn.initializers.normal(0.02), (cfg.width,), jnp.float32)

    def embed_steps(self, position: jax.Array) -> jax.Array:
        """Embed the indices of steps in their episodes: int32 ``[...]`` to ``[..., d]``. The sink has row 0, if any."""
        return self.step_embedding[position + self.config.first_index].astype(self.config.dtype)

    def depth_coins(self, key: jax.Array | None) -> jax.Array:
        """Draw which blocks depth dropout keeps: ``[layers]`` of 1 and 0. All are kept without a key."""
        cfg = self.config
        if key is None or cfg.depth_dropout <= 0:
            return jnp.ones((cfg.layers,), cfg.dtype)
        return jax.random.bernoulli(key, 1 - cfg.depth_dropout, (cfg.layers,)).astype(cfg.dtype)

    def sinks(self, keep: jax.Array) -> list[Sink | None]:
        """Return the sink of every layer. ``keep`` is ``[layers]``, see `depth_coins`."""
        if self.config.sink != "token":
            return [block.learned_sink() for block in self.blocks]
        token = self.sink_token.astype(self.config.dtype)
        if self.config.step_embedding:
            token = token + self.step_embedding[0].astype(self.config.dtype)
        slots: list[Sink | None] = []
        for block, keep_block in zip(self.blocks, keep, strict=True):
            token, slot = block.sink_token(token, keep_block)
            slots.append(slot)
        return slots

    def __call__(
        self,
        x: jax.Array,
        first: jax.Array,
        cache: KVCache,
        *,
        decode: bool = False,
        valid: jax.Array | None = None,
        window: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        query_span: Span | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Apply the transformer to Q steps that follow those in the cache.

        Args:
            x: Embedded steps ``[B, Q, d]``, or this device's part of them (`sharded.own_steps`).
            first: bool ``[B, Q]``, whether a step is the first of its episode.
            cache: The earlier steps. A cache of capacity 0 serves a pass over a whole trial.
            decode: Whether this is a single step (Q = 1), which attends by reading the whole cache.
            valid: int32 ``[]``, number of steps of the block that matter. None for all.
            window: int32 ``[]`` or ``[B]``, number of last steps that a decode step attends to. None for all.
            dropout_key: Key for depth dropout, in training passes only.
            query_span: The steps whose hidden states are returned. None for all. The last block computes only keys
                and values of the others.

        Returns:
            Hidden states ``[B, Q or query_span.size, d]``, or this device's part, and the cache after the steps.
        """
        cfg = self.config
        position, episode = kv.index_steps(cache, first)
        own = own_steps(cache, Span(0, first.shape[1]))
        if own is not None:
            position = own.of(position)
            query_span = query_span and own_steps(cache, query_span)
        sinks = self.sinks(keep := self.depth_coins(dropout_key))
        x = x.astype(cfg.dtype)
        x = x + self.embed_steps(position) if cfg.step_embedding else x
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            inputs = BlockInputs(
                episode,
                cache.step_context(layer, episode) if decode else cache.context(layer),
                sinks[layer],
                keep[layer],
                slot=cache.next_slot if decode else None,
                valid=valid,
                window=window,
                query_span=query_span if layer == cfg.layers - 1 else None,
                axis=cache.axis,
                stores=cache.stores_next if decode else None,
                own=own,
            )
            x, key, value = block(x, inputs)
            keys.append(key)
            values.append(value)
        if decode:
            cache = cache.with_step(keys, values, position, episode)
        elif cache.slots:
            cache = cache.with_block(keys, values, position, episode, x)
        return self.norm(x), cache


def empty_memory(cfg: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """Return an empty memory with room for ``capacity`` steps of ``batch`` environments."""
    if cfg.window is None:
        return empty_cache(cfg, batch, capacity)
    return RingCache.of(empty_cache(cfg, batch, cfg.window if capacity else 0))


def empty_cache(cfg: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """Return an empty cache with ``capacity`` slots for ``batch`` environments."""
    return kv.empty_cache(
        batch,
        capacity,
        layers=cfg.layers,
        heads=cfg.heads,
        head_width=cfg.head_width,
        first_episode=cfg.first_index,
        kv_format=cfg.cache_format,
    )
