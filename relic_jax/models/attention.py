"""Attention as plain functions: rotation by episode, sinks, one step against a cache, and a block of steps.

Shapes: B environments, H heads, D head width, Q new steps, S slots of the cache. Scores are q·k/sqrt(D).

A *sink* gives attention somewhere to put probability mass when nothing in the context is worth attending to: one extra
slot (k_s, v_s) per head that every step sees, `softmax([q·k_s, q·k_1 … q·k_t]/sqrt(D))` (Elawady et al. 2024,
arXiv 2410.02751, section 3.2). It enters the running softmax as its initial state, so it is exact and costs nothing.

`attend_block` is written against a *context* (cache slots before the block, read only) and the block's own keys and
values. Its gradient goes to the block's own keys and values and to the sink, never to the context: that is what
"the context's gradient stopped" means, and passing an empty context and the whole trial as the block gives the
gradient through everything. Memory is O(Q·D): tiles of the score matrix are recomputed in the backward pass (Rabe &
Staats 2021, arXiv 2112.05682; Dao et al. 2022, arXiv 2205.14135), and the number of tiles visited is dynamic, so one
compiled function serves every length of context.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.kv_formats import Slots

MASKED = -1e30  # finite, so that differences of masked scores stay finite
TILE, CONTEXT_TILE = 128, 256  # steps of the block and slots of the context per tile of scores on CPU
ACCELERATOR_TILES = 256, 1024  # the same elsewhere: every turn of a loop waits for its end to be known
ACCELERATOR_SCORES = 2**25  # up to so many scores in all, an accelerator does without tiles


class Sink(NamedTuple):
    """The extra attention slot of one layer. key, value: [H, D]. The key is never rotated."""

    key: jax.Array
    value: jax.Array


class Context(NamedTuple):
    """Slots before the block. keys, values: [B, H, S, D] (keys rotated); episodes: int32 [B, S]; length: int32 []."""

    keys: Slots
    values: Slots
    episodes: jax.Array
    length: jax.Array

    @property
    def capacity(self) -> int:
        """S."""
        return self.episodes.shape[1]


def rotate(x: jax.Array, index: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary embedding by an index per step (Su et al. 2021; halves rotated, as in Llama).

    x: [B, H, Q, D]. index: int32 [B, Q]; here the index of the episode, so all steps of one episode share an angle.
    """
    half = x.shape[-1] // 2
    frequency = jnp.asarray(base ** (-np.arange(half) / half), jnp.float32)
    angle = index.astype(jnp.float32)[:, None, :, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend_step(
    query: jax.Array, context: Context, sink: Sink | None, *, episode: jax.Array | None, window: jax.Array | None = None
) -> jax.Array:
    """One query per environment against a cache that already holds the step's own key and value.

    query: [B, H, D]. context.length counts the filled slots, the step's own included. episode: int32 [B] restricts
    attention to slots of that episode (None: no restriction). window: int32 [] or [B], attend to at most that many last
    slots. Returns [B, H, D].
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = _einsum("bhd,bhsd->bhs", query * scale, context.keys.data.astype(query.dtype))
    if context.keys.scale is not None:
        scores *= context.keys.scale
    slot = jnp.arange(context.capacity)
    visible = (slot < context.length)[None]
    if window is not None:
        visible &= slot >= context.length - jnp.asarray(window)[..., None]
    if episode is not None:
        visible &= context.episodes == episode[:, None]
    scores = jnp.where(visible[:, None], scores, MASKED)
    top = scores.max(-1)
    if sink is not None:
        sink_score = _einsum("bhd,hd->bh", query * scale, sink.key)
        top = jnp.maximum(top, sink_score)
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(-1)
    scaled = weights if context.values.scale is None else weights * context.values.scale
    out = _einsum("bhs,bhsd->bhd", scaled.astype(query.dtype), context.values.data.astype(query.dtype))
    if sink is not None:
        sink_weight = jnp.exp(sink_score - top)
        total += sink_weight
        out += sink_weight[..., None] * sink.value.astype(jnp.float32)
    return (out / total[..., None]).astype(query.dtype)


def _einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """A product that is summed in float32, whatever its operands' dtype."""
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def attend_reference(
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
) -> jax.Array:
    """The definition, in O(Q·(S+K)) memory: same arguments and result as `attend_block`, differentiated by jax."""
    q_len, k_len, slots = query.shape[2], key.shape[2], context.capacity
    context = lax.stop_gradient(context)
    keys = jnp.concatenate([context.keys.decoded(key.dtype), key], axis=2)
    values = jnp.concatenate([context.values.decoded(value.dtype), value], axis=2)
    scores = _einsum("bhqd,bhkd->bhqk", query, keys)
    visible = jnp.concatenate(
        [
            jnp.broadcast_to(jnp.arange(slots) < context.length, (q_len, slots)),
            start + jnp.arange(q_len)[:, None] >= jnp.arange(k_len)[None, :],
        ],
        axis=1,
    )[None]
    if within_episode:
        key_episodes = jnp.concatenate([context.episodes, episodes], axis=1)
        visible = visible & (_tile(episodes, start, q_len, 1)[:, :, None] == key_episodes[:, None, :])
    scores = jnp.where(visible[:, None], scores / math.sqrt(query.shape[-1]), MASKED)
    if sink is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        sink_scores = _einsum("bhqd,hd->bhq", query, sink.key)
        sink_scores = sink_scores[..., None] / math.sqrt(query.shape[-1])
        weights = jax.nn.softmax(jnp.concatenate([sink_scores, scores], axis=-1), axis=-1)
        sink_out = weights[..., :1] * sink.value.astype(jnp.float32)[None, :, None, :]
        weights = weights[..., 1:]
    out = _einsum("bhqk,bhkd->bhqd", weights.astype(values.dtype), values)
    return first_steps((out if sink is None else out + sink_out).astype(query.dtype), valid, start)


def attend_block(
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
) -> jax.Array:
    """A block of K consecutive steps: causal among themselves, after everything in the context.

    query: [B, H, Q, D], of the Q steps from `start` (int32 []) on; key, value: [B, H, K, D], of all. Queries and keys
    are rotated. episodes: int32 [B, K]. context: S slots of which the first `context.length` are filled; S may be 0.
    within_episode: a step sees only its own episode (and the sink). valid: int32 [], only the first that many steps of
    the block matter; outputs after them are 0 and cost nothing. Returns [B, H, Q, D] in the dtype of `query`.
    """
    q_len = query.shape[2]
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu and math.prod(query.shape[:3]) * (context.capacity + key.shape[2]) <= ACCELERATOR_SCORES:
        return attend_reference(
            query, key, value, episodes, context, sink, within_episode=within_episode, valid=valid, start=start
        )
    tile, context_tile = (TILE, CONTEXT_TILE) if on_cpu else ACCELERATOR_TILES
    tile = min(tile, q_len)
    q_episodes = _padded(_tile(episodes, start, q_len, 1), tile, 1, -1)
    episodes = _padded(episodes, tile, 1, -1)
    query, key, value = (_padded(x, tile, 2) for x in (query, key, value))
    heads, width = query.shape[1], query.shape[3]
    if sink is None:  # a sink whose score is −∞
        sink_arrays = Sink(jnp.zeros((heads, width), query.dtype), jnp.zeros((heads, width), query.dtype))
    else:
        sink_arrays = Sink(sink.key.astype(query.dtype), sink.value.astype(query.dtype))
    start = jnp.asarray(start, jnp.int32)
    tiled = jnp.asarray(q_len if valid is None else jnp.minimum(valid - start, q_len), jnp.int32)  # in whole tiles
    spec = _Spec(tile=tile, context_tile=context_tile, has_sink=sink is not None, within_episode=within_episode)
    scaled = query * jnp.asarray(1.0 / math.sqrt(width), query.dtype)
    out = _attend(spec, scaled, key, value, sink_arrays, q_episodes, episodes, context, start, tiled)
    return first_steps(out[:, :, :q_len], valid, start)


def _padded(x: jax.Array, tile: int, axis: int, value: int = 0) -> jax.Array:
    """Filled up to whole tiles. Such keys come after every query; what such queries give is cut off again."""
    missing = -x.shape[axis] % tile
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], constant_values=value)


def first_steps(x: jax.Array, valid: jax.Array | None, start: jax.Array | int) -> jax.Array:
    """x [B, H, Q, D], of steps from `start` on, with zeros, and no gradient, after the block's first `valid` steps."""
    return x if valid is None else jnp.where((start + jnp.arange(x.shape[2]) < valid)[:, None], x, 0)


class _Spec(NamedTuple):
    tile: int
    context_tile: int
    has_sink: bool
    within_episode: bool


class _Running(NamedTuple):
    """Online softmax of one tile of queries: top and total [B, H, q], out [B, H, q, D] (unnormalised), float32."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


def _tile(x: jax.Array, start: jax.Array | int, size: int, axis: int = 2) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis)


def _num_tiles(length: jax.Array, tile: int) -> jax.Array:
    return (length + tile - 1) // tile


def _context_tile(spec: _Spec, context: Context, j: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, H, k, D] of the j-th tile of the context. The last is moved back to stay in the buffer."""
    size = min(spec.context_tile, context.capacity)
    start = jnp.minimum(j * size, context.capacity - size)
    keys, values = (kv_formats.tile(slots, start, size) for slots in (context.keys, context.values))
    return keys.decoded(dtype), values.decoded(dtype)


def _context_visible(spec: _Spec, context: Context, j: jax.Array, q_episodes: jax.Array) -> jax.Array:
    """Visibility [B|1, 1, q|1, k] of the j-th tile of the context; slots that an earlier tile held are masked."""
    size = min(spec.context_tile, context.capacity)
    start = jnp.minimum(j * size, context.capacity - size)
    slot = start + jnp.arange(size)
    visible = ((slot >= j * size) & (slot < context.length))[None, None, None]
    if spec.within_episode:
        same = q_episodes[:, :, None] == _tile(context.episodes, start, size, 1)[:, None, :]
        visible = visible & same[:, None]
    return visible


def _local_visible(
    spec: _Spec, first: jax.Array, j: jax.Array, q_episodes: jax.Array, episodes: jax.Array
) -> jax.Array:
    """Visibility [B|1, 1, q, q] of the j-th tile of the block from the tile of queries that begins at step `first`."""
    index = jnp.arange(spec.tile)
    visible = (first + index[:, None] >= j * spec.tile + index[None, :])[None, None]
    if spec.within_episode:
        k_episodes = _tile(episodes, j * spec.tile, spec.tile, 1)
        visible = visible & (q_episodes[:, :, None] == k_episodes[:, None, :])[:, None]
    return visible


def _over_context(spec: _Spec, context: Context, q_episodes: jax.Array, body: Callable[..., Any], carry: Any) -> Any:
    """`carry = body(j, carry, visible)` for every tile of the context that a tile of queries can see any of.

    visible is None where all of the tile is: masking costs as much as a fifth of the whole.
    """
    if not context.capacity:
        return carry
    size = min(spec.context_tile, context.capacity)
    filled = jnp.arange(context.capacity) < context.length
    first = _first_tile(spec, context.episodes, filled, q_episodes, size)
    whole = first if spec.within_episode else context.length // size
    carry = lax.fori_loop(first, whole, lambda j, c: body(j, c, None), carry)
    return lax.fori_loop(
        whole,
        _num_tiles(context.length, size),
        lambda j, c: body(j, c, _context_visible(spec, context, j, q_episodes)),
        carry,
    )


def _over_block(
    spec: _Spec, first: jax.Array, episodes: jax.Array, q_episodes: jax.Array, body: Callable[..., Any], carry: Any
) -> Any:
    """`_over_context` for the tiles of the block itself, as the tile of queries that begins at step `first` sees it."""
    steps = episodes.shape[1]
    skipped = _first_tile(spec, episodes, jnp.arange(steps) < first, q_episodes, spec.tile)
    whole = skipped if spec.within_episode else first // spec.tile
    end = jnp.minimum(_num_tiles(first + spec.tile, spec.tile), steps // spec.tile)
    carry = lax.fori_loop(skipped, whole, lambda j, c: body(j, c, None), carry)
    return lax.fori_loop(
        whole, end, lambda j, c: body(j, c, _local_visible(spec, first, j, q_episodes, episodes)), carry
    )


def _first_tile(spec: _Spec, episodes: jax.Array, there: jax.Array, q_episodes: jax.Array, size: int) -> jax.Array:
    """Tiles that hold nothing but earlier episodes than those of the queries are skipped.

    episodes: int32 [B, S], ascending over the slots that are `there` (bool [S], the first ones).
    """
    if not spec.within_episode:
        return jnp.zeros((), jnp.int32)
    over = (there & (episodes < q_episodes[:, :1])).sum(1, dtype=jnp.int32)
    return over.min() // size


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    return _einsum("bhqd,bhkd->bhqk", q, k)


def _absorb(running: _Running, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> _Running:
    """Adds one tile of keys to the running softmax of a tile of queries. visible: None for all."""
    scores = _scores(q, k)
    if visible is not None:
        scores = jnp.where(visible, scores, MASKED)
    top = jnp.maximum(running.top, scores.max(-1))
    # exp(MASKED − MASKED) would be 1 in a row that has seen nothing yet, hence the floor on what is subtracted
    weights = jnp.exp(scores - jnp.maximum(top, MASKED / 2)[..., None])
    decay = jnp.exp(running.top - top)
    update = _einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    return _Running(top, running.total * decay + weights.sum(-1), running.out * decay[..., None] + update)


def _initial(spec: _Spec, q: jax.Array, sink: Sink) -> _Running:
    shape = q.shape[:3]
    if not spec.has_sink:
        return _Running(
            jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(q.shape, jnp.float32)
        )
    top = _einsum("bhqd,hd->bhq", q, sink.key)
    out = jnp.broadcast_to(sink.value.astype(jnp.float32)[None, :, None, :], q.shape)
    return _Running(top, jnp.ones(shape, jnp.float32), out)


def _forward(spec: _Spec, q, k, v, sink: Sink, q_episodes, episodes, context: Context, start, valid):
    """Returns (out [B, H, Q, D], logsumexp [B, H, Q] float32), the sink included in both."""
    size = spec.tile

    def query_tile(i, carry):
        out, lse = carry
        q_i, q_ep = _tile(q, i * size, size), _tile(q_episodes, i * size, size, 1)

        def context_tile(j, running, visible):
            return _absorb(running, q_i, *_context_tile(spec, context, j, q.dtype), visible)

        def local_tile(j, running, visible):
            return _absorb(running, q_i, _tile(k, j * size, size), _tile(v, j * size, size), visible)

        running = _over_context(spec, context, q_ep, context_tile, _initial(spec, q_i, sink))
        running = _over_block(spec, start + i * size, episodes, q_ep, local_tile, running)
        out_i = (running.out / running.total[..., None]).astype(q.dtype)
        out = lax.dynamic_update_slice_in_dim(out, out_i, i * size, 2)
        lse = lax.dynamic_update_slice_in_dim(lse, running.top + jnp.log(running.total), i * size, 2)
        return out, lse

    nothing = jnp.zeros_like(q), jnp.zeros(q.shape[:3], jnp.float32)
    return lax.fori_loop(0, _num_tiles(valid, size), query_tile, nothing)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: _Spec, q, k, v, sink: Sink, q_episodes, episodes, context: Context, start, valid) -> jax.Array:
    return _forward(spec, q, k, v, sink, q_episodes, episodes, context, start, valid)[0]


def _attend_fwd(spec: _Spec, q, k, v, sink, q_episodes, episodes, context, start, valid):
    out, lse = _forward(spec, q, k, v, sink, q_episodes, episodes, context, start, valid)
    return out, (q, k, v, sink, q_episodes, episodes, context, start, valid, out, lse)


def _attend_bwd(spec: _Spec, residuals, d_out):
    """Gradients of a softmax from its output and log-sum-exp, tile by tile.

    With weights w = exp(score − lse): dv = wᵀ·do, ds = w·(do·vᵀ − do·o), dq = ds·k, dk = dsᵀ·q. The sink is one more
    key, so its gradients are the same formulas in closed form.
    """
    q, k, v, sink, q_episodes, episodes, context, start, valid, out, lse = residuals
    size = spec.tile

    def tile_gradients(q_i, do_i, lse_i, delta_i, k_j, v_j, visible):
        weights = jnp.exp(_scores(q_i, k_j) - lse_i[..., None])
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        d_weights = _einsum("bhqd,bhkd->bhqk", do_i, v_j)
        d_scores = (weights * (d_weights - delta_i[..., None])).astype(q.dtype)
        d_q = _einsum("bhqk,bhkd->bhqd", d_scores, k_j)
        return weights.astype(q.dtype), d_scores, d_q

    def transposed(x, y):  # xᵀ·y over queries; this order of the operands is the fast one on CPU
        return jnp.swapaxes(_einsum("bhqd,bhqk->bhdk", x, y), 2, 3)

    def add(total, part, start):
        return lax.dynamic_update_slice_in_dim(total, _tile(total, start, size) + part, start, 2)

    def query_tile(i, carry):
        d_q, d_k, d_v, d_sink_key, d_sink_value = carry
        q_i, do_i = _tile(q, i * size, size), _tile(d_out, i * size, size)
        lse_i, q_ep = _tile(lse, i * size, size), _tile(q_episodes, i * size, size, 1)
        delta_i = jnp.sum(do_i.astype(jnp.float32) * _tile(out, i * size, size).astype(jnp.float32), -1)
        d_q_i = jnp.zeros(q_i.shape, jnp.float32)
        if spec.has_sink:
            d_q_i, (d_key, d_value) = sink_gradients(q_i, do_i, lse_i, delta_i, sink)
            d_sink_key, d_sink_value = d_sink_key + d_key, d_sink_value + d_value

        def context_tile(j, total, visible):
            keys_values = _context_tile(spec, context, j, q.dtype)
            return total + tile_gradients(q_i, do_i, lse_i, delta_i, *keys_values, visible)[2]

        def local_tile(j, carry, visible):
            d_q_i, d_k, d_v = carry
            k_j, v_j = _tile(k, j * size, size), _tile(v, j * size, size)
            weights, d_scores, part = tile_gradients(q_i, do_i, lse_i, delta_i, k_j, v_j, visible)
            d_k = add(d_k, transposed(q_i, d_scores), j * size)
            d_v = add(d_v, transposed(do_i, weights), j * size)
            return d_q_i + part, d_k, d_v

        d_q_i = _over_context(spec, context, q_ep, context_tile, d_q_i)
        d_q_i, d_k, d_v = _over_block(spec, start + i * size, episodes, q_ep, local_tile, (d_q_i, d_k, d_v))
        return lax.dynamic_update_slice_in_dim(d_q, d_q_i, i * size, 2), d_k, d_v, d_sink_key, d_sink_value

    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    nothing = zeros(q.shape), zeros(k.shape), zeros(v.shape), zeros(sink.key.shape), zeros(sink.value.shape)
    d_q, d_k, d_v, d_sink_key, d_sink_value = lax.fori_loop(0, _num_tiles(valid, size), query_tile, nothing)
    d_sink = Sink(d_sink_key.astype(sink.key.dtype), d_sink_value.astype(sink.value.dtype))
    return (
        *(d.astype(x.dtype) for d, x in ((d_q, q), (d_k, k), (d_v, v))),
        d_sink,
        *jax.tree.map(zero_cotangent, (q_episodes, episodes, context, start, valid)),
    )


def sink_gradients(
    q: jax.Array, d_out: jax.Array, lse: jax.Array, delta: jax.Array, sink: Sink
) -> tuple[jax.Array, Sink]:
    """What a sink gives to the gradient of queries, and its own: float32, ([B, H, Q, D], [H, D] each).

    q, d_out: [B, H, Q, D]; lse: log-sum-exp of the scores, and delta: Σ d_out·out, [B, H, Q].
    """
    weight = jnp.exp(_einsum("bhqd,hd->bhq", q, sink.key) - lse)
    d_score = weight * (_einsum("bhqd,hd->bhq", d_out, sink.value) - delta)
    d_key = jnp.einsum("bhq,bhqd->hd", d_score, q.astype(jnp.float32))
    d_value = jnp.einsum("bhq,bhqd->hd", weight, d_out.astype(jnp.float32))
    return d_score[..., None] * sink.key.astype(jnp.float32)[None, :, None, :], Sink(d_key, d_value)


def zero_cotangent(x: jax.Array):
    """The cotangent of an input that gets no gradient: symbolic float0 for integers."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


_attend.defvjp(_attend_fwd, _attend_bwd)
