"""Attention of a block of steps in tiles of the score matrix, in XLA: the kernel of every device without a special one.

Memory is O(Q·D): tiles of scores are recomputed in the backward pass (Rabe & Staats 2021, arXiv 2112.05682; Dao et al.
2022, arXiv 2205.14135). The number of tiles is dynamic, so one compiled function serves contexts of every length. The
sink is the initial state of the running softmax, so it is exact and costs nothing.

If the context is split over devices, each device computes the running softmax over its part. All-reduces merge these
exactly, whatever their lengths. The sink and the block are added after the merge, on every device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.attention.gradients import sink_gradients, zero_cotangent
from relic_jax.models.attention.inputs import MASKED, AttentionInputs, Context, Sink
from relic_jax.models.attention.reference import attend as attend_untiled
from relic_jax.models.attention.reference import einsum


class Tiles(NamedTuple):
    """Sizes of tiles of scores.

    Attributes:
        block: Steps of the block, queries and keys.
        context: Slots of the context.
        untiled_scores: Up to this many scores in all, the definition is used, without tiles.
    """

    block: int
    context: int
    untiled_scores: int


CPU_TILES = Tiles(128, 256, 0)
ACCELERATOR_TILES = Tiles(256, 1024, 2**25)
"""Larger than on CPUs: at every iteration of a loop of dynamic length, an accelerator waits for its condition."""


def attend(inputs: AttentionInputs, *, tiles: Tiles) -> jax.Array:
    """Compute attention for a block of steps.

    Tiles that no query sees, and steps after the first ``inputs.valid``, cost nothing.

    Args:
        inputs: Queries, block and context. See `AttentionInputs`.
        tiles: Sizes of the tiles.

    Returns:
        ``[B, H, Q, D]`` in the dtype of ``inputs.query``.
    """
    query, key, value, sink = inputs.query, inputs.key, inputs.value, inputs.sink
    axis = inputs.axis if inputs.context.capacity else None
    scores = math.prod(query.shape[:3]) * (inputs.context.capacity + key.shape[2])
    if axis is None and scores <= tiles.untiled_scores:
        return attend_untiled(inputs)
    q_len, heads, width = query.shape[2], query.shape[1], query.shape[3]
    tile = min(tiles.block, q_len)
    q_episodes = _padded(_tile(inputs.episodes, inputs.start, q_len, 1), tile, 1, -1)
    episodes = _padded(inputs.episodes, tile, 1, -1)
    query, key, value = (_padded(x, tile, 2) for x in (query, key, value))
    if sink is None:  # a sink whose score is −∞
        sink_arrays = Sink(jnp.zeros((heads, width), query.dtype), jnp.zeros((heads, width), query.dtype))
    else:
        sink_arrays = Sink(sink.key.astype(query.dtype), sink.value.astype(query.dtype))
    start = jnp.asarray(inputs.start, jnp.int32)
    used = jnp.asarray(q_len if inputs.valid is None else jnp.minimum(inputs.valid - start, q_len), jnp.int32)
    spec = _Spec(tile, tiles.context, sink is not None, inputs.within_episode, inputs.window, axis)
    scaled = query * jnp.asarray(1.0 / math.sqrt(width), query.dtype)
    out = _attend(spec, scaled, key, value, sink_arrays, q_episodes, episodes, inputs.context, start, used)
    return inputs.zero_invalid(out[:, :, :q_len])


def _padded(x: jax.Array, tile: int, axis: int, value: int = 0) -> jax.Array:
    """Pad an axis to whole tiles. Padded keys come after every query, and outputs of padded queries are cut off."""
    missing = -x.shape[axis] % tile
    if not missing:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], constant_values=value)


class _Spec(NamedTuple):
    """The static arguments of `_attend`."""

    tile: int
    context_tile: int
    has_sink: bool
    within_episode: bool
    window: jax.Array | int | None
    axis: str | None = None


class _Running(NamedTuple):
    """Online softmax of a tile of q queries, float32: top, total ``[B, H, q]``; out ``[B, H, q, D]``, unnormalised."""

    top: jax.Array
    total: jax.Array
    out: jax.Array


def _tile(x: jax.Array, start: jax.Array | int, size: int, axis: int = 2) -> jax.Array:
    """Return ``size`` entries of an axis from ``start`` on."""
    return lax.dynamic_slice_in_dim(x, start, size, axis)


def _num_tiles(length: jax.Array, tile: int) -> jax.Array:
    """Return the number of tiles that cover ``length``."""
    return (length + tile - 1) // tile


def _context_tile(spec: _Spec, context: Context, j: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Return keys and values ``[B, H, k, D]`` of tile j of the context. The last tile is moved back into the buffer."""
    size = min(spec.context_tile, context.capacity)
    start = jnp.minimum(j * size, context.capacity - size)
    keys, values = (kv_formats.tile(slots, start, size) for slots in (context.keys, context.values))
    return keys.decoded(dtype), values.decoded(dtype)


def _context_visible(spec: _Spec, context: Context, j: jax.Array, step: jax.Array, q_episodes: jax.Array) -> jax.Array:
    """Return the mask ``[B|1, 1, q|1, k]`` of tile j of the context, for queries from ``step`` of the block on.

    Slots of an earlier tile are masked.
    """
    size = min(spec.context_tile, context.capacity)
    start = jnp.minimum(j * size, context.capacity - size)
    slot = start + jnp.arange(size)
    visible = ((slot >= j * size) & (slot < context.length))[None, None, None]
    if spec.window is not None:
        visible = visible & (context.length + step + jnp.arange(spec.tile)[:, None] - slot < spec.window)
    if spec.within_episode:
        same = q_episodes[:, :, None] == _tile(context.episodes, start, size, 1)[:, None, :]
        visible = visible & same[:, None]
    return visible


def _local_visible(
    spec: _Spec, first: jax.Array, j: jax.Array, q_episodes: jax.Array, episodes: jax.Array
) -> jax.Array:
    """Return the mask ``[B|1, 1, q, q]`` of tile j of the block for the tile of queries that starts at ``first``."""
    index = jnp.arange(spec.tile)
    distance = first + index[:, None] - (j * spec.tile + index[None, :])
    visible = (distance >= 0)[None, None]
    if spec.window is not None:
        visible = visible & (distance < spec.window)
    if spec.within_episode:
        k_episodes = _tile(episodes, j * spec.tile, spec.tile, 1)
        visible = visible & (q_episodes[:, :, None] == k_episodes[:, None, :])[:, None]
    return visible


def _over_context(
    spec: _Spec, context: Context, step: jax.Array, q_episodes: jax.Array, body: Callable[..., Any], carry: Any
) -> Any:
    """Apply ``carry = body(j, carry, visible)`` to every tile of the context that a tile of queries attends to.

    The queries are the steps of the block from ``step`` on. ``visible`` is None if every query sees the whole tile,
    because masking takes up to a fifth of the time.
    """
    if not context.capacity:
        return carry
    size = min(spec.context_tile, context.capacity)
    filled = jnp.arange(context.capacity) < context.length
    first = _first_tile(spec, context.episodes, filled, context.length + step, q_episodes, size)
    whole = first if _masked(spec) else context.length // size
    carry = lax.fori_loop(first, whole, lambda j, c: body(j, c, None), carry)
    return lax.fori_loop(
        whole,
        _num_tiles(context.length, size),
        lambda j, c: body(j, c, _context_visible(spec, context, j, step, q_episodes)),
        carry,
    )


def _over_block(
    spec: _Spec, first: jax.Array, episodes: jax.Array, q_episodes: jax.Array, body: Callable[..., Any], carry: Any
) -> Any:
    """Do as `_over_context` with the tiles of the block, for the tile of queries that starts at step ``first``."""
    steps = episodes.shape[1]
    skipped = _first_tile(spec, episodes, jnp.arange(steps) < first, first, q_episodes, spec.tile)
    whole = skipped if _masked(spec) else first // spec.tile
    end = jnp.minimum(_num_tiles(first + spec.tile, spec.tile), steps // spec.tile)
    carry = lax.fori_loop(skipped, whole, lambda j, c: body(j, c, None), carry)
    return lax.fori_loop(
        whole, end, lambda j, c: body(j, c, _local_visible(spec, first, j, q_episodes, episodes)), carry
    )


def _masked(spec: _Spec) -> bool:
    """Whether a query can be unable to see an earlier step."""
    return spec.within_episode or spec.window is not None


def _first_tile(
    spec: _Spec, episodes: jax.Array, filled: jax.Array, step: jax.Array, q_episodes: jax.Array, size: int
) -> jax.Array:
    """Return the first tile with a key that is in the episode and in the window of one of the queries.

    ``episodes`` is int32 ``[B, S]`` and ascends over the ``filled`` slots (bool ``[S]``), which are the first ones.
    ``step`` is the slot that the first query would have after them.
    """
    first = jnp.zeros((), jnp.int32)
    if spec.within_episode:
        first = (filled & (episodes < q_episodes[:, :1])).sum(1, dtype=jnp.int32).min()
    if spec.window is not None:
        first = jnp.maximum(first, step + 1 - spec.window)
    return first // size


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Return the scores ``[B, H, q, k]``."""
    return einsum("bhqd,bhkd->bhqk", q, k)


def _absorb(running: _Running, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> _Running:
    """Add one tile of keys to the running softmax of a tile of queries. ``visible`` is None if no key is masked."""
    scores = _scores(q, k)
    if visible is not None:
        scores = jnp.where(visible, scores, MASKED)
    top = jnp.maximum(running.top, scores.max(-1))
    # exp(MASKED − MASKED) would be 1 for a query that has seen no key yet, hence the floor
    weights = jnp.exp(scores - jnp.maximum(top, MASKED / 2)[..., None])
    decay = jnp.exp(running.top - top)
    update = einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    return _Running(top, running.total * decay + weights.sum(-1), running.out * decay[..., None] + update)


def _initial(spec: _Spec, q: jax.Array, sink: Sink) -> _Running:
    """Return the running softmax before any key: the sink, if there is one."""
    if not spec.has_sink:
        return _empty(q)
    top = einsum("bhqd,hd->bhq", q, sink.key)
    out = jnp.broadcast_to(sink.value.astype(jnp.float32)[None, :, None, :], q.shape)
    return _Running(top, jnp.ones(q.shape[:3], jnp.float32), out)


def _empty(q: jax.Array) -> _Running:
    """Return the running softmax over no key."""
    shape = q.shape[:3]
    return _Running(
        jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32), jnp.zeros(q.shape, jnp.float32)
    )


def _merged(running: _Running, axis: str) -> _Running:
    """Return the running softmax over the keys of all devices of an axis. Some of them can have no key."""
    top = lax.pmax(running.top, axis)
    scale = jnp.exp(running.top - top)
    total, out = lax.psum((running.total * scale, running.out * scale[..., None]), axis)
    return _Running(top, total, out)


def _joined(one: _Running, other: _Running) -> _Running:
    """Return the running softmax over the keys of both."""
    top = jnp.maximum(one.top, other.top)
    scales = [jnp.exp(running.top - top) for running in (one, other)]
    total = one.total * scales[0] + other.total * scales[1]
    return _Running(top, total, one.out * scales[0][..., None] + other.out * scales[1][..., None])


def _forward(spec: _Spec, q, k, v, sink: Sink, q_episodes, episodes, context: Context, start, used):
    """Return the output ``[B, H, Q, D]`` and the log-sum-exp, float32 ``[B, H, Q]``. Both include the sink."""
    size = spec.tile

    def query_tile(i, carry):
        out, lse = carry
        q_i, q_ep = _tile(q, i * size, size), _tile(q_episodes, i * size, size, 1)

        def context_tile(j, running, visible):
            return _absorb(running, q_i, *_context_tile(spec, context, j, q.dtype), visible)

        def local_tile(j, running, visible):
            return _absorb(running, q_i, _tile(k, j * size, size), _tile(v, j * size, size), visible)

        step, running = start + i * size, _initial(spec, q_i, sink)
        if spec.axis is None:
            running = _over_context(spec, context, step, q_ep, context_tile, running)
        else:
            part = _over_context(spec, context, step, q_ep, context_tile, _empty(q_i))
            running = _joined(running, _merged(part, spec.axis))
        running = _over_block(spec, step, episodes, q_ep, local_tile, running)
        out_i = (running.out / running.total[..., None]).astype(q.dtype)
        out = lax.dynamic_update_slice_in_dim(out, out_i, i * size, 2)
        lse = lax.dynamic_update_slice_in_dim(lse, running.top + jnp.log(running.total), i * size, 2)
        return out, lse

    empty = jnp.zeros_like(q), jnp.zeros(q.shape[:3], jnp.float32)
    return lax.fori_loop(0, _num_tiles(used, size), query_tile, empty)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: _Spec, q, k, v, sink: Sink, q_episodes, episodes, context: Context, start, used) -> jax.Array:
    """Compute attention of the first ``used`` queries, in whole tiles. ``q`` is scaled, and all arrays are padded."""
    return _forward(spec, q, k, v, sink, q_episodes, episodes, context, start, used)[0]


def _attend_fwd(spec: _Spec, q, k, v, sink, q_episodes, episodes, context, start, used):
    out, lse = _forward(spec, q, k, v, sink, q_episodes, episodes, context, start, used)
    return out, (q, k, v, sink, q_episodes, episodes, context, start, used, out, lse)


def _tile_gradients(q_i, do_i, lse_i, delta_i, k_j, v_j, visible):
    """Return weights, gradients of scores, and the gradient of the queries, for one tile of scores."""
    weights = jnp.exp(_scores(q_i, k_j) - lse_i[..., None])
    if visible is not None:
        weights = jnp.where(visible, weights, 0.0)
    d_weights = einsum("bhqd,bhkd->bhqk", do_i, v_j)
    d_scores = (weights * (d_weights - delta_i[..., None])).astype(q_i.dtype)
    d_q = einsum("bhqk,bhkd->bhqd", d_scores, k_j)
    return weights.astype(q_i.dtype), d_scores, d_q


def _transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return xᵀ·y, summed over queries. XLA on CPU is fast with this order of the operands."""
    return jnp.swapaxes(einsum("bhqd,bhqk->bhdk", x, y), 2, 3)


def _add(total: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    """Add to the steps of ``total`` from ``start`` on."""
    return lax.dynamic_update_slice_in_dim(total, _tile(total, start, part.shape[2]) + part, start, 2)


def _attend_bwd(spec: _Spec, residuals, d_out):
    """Compute the gradients of a softmax from its output and log-sum-exp, tile by tile.

    With weights w = exp(score − lse): dv = wᵀ·do, ds = w·(do·vᵀ − do·o), dq = ds·k, dk = dsᵀ·q.
    """
    q, k, v, sink, q_episodes, episodes, context, start, used, out, lse = residuals
    size = spec.tile

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
            return total + _tile_gradients(q_i, do_i, lse_i, delta_i, *keys_values, visible)[2]

        def local_tile(j, carry, visible):
            d_q_i, d_k, d_v = carry
            k_j, v_j = _tile(k, j * size, size), _tile(v, j * size, size)
            weights, d_scores, part = _tile_gradients(q_i, do_i, lse_i, delta_i, k_j, v_j, visible)
            d_k = _add(d_k, _transposed(q_i, d_scores), j * size)
            d_v = _add(d_v, _transposed(do_i, weights), j * size)
            return d_q_i + part, d_k, d_v

        step = start + i * size
        if spec.axis is None:
            d_q_i = _over_context(spec, context, step, q_ep, context_tile, d_q_i)
        else:
            part = _over_context(spec, context, step, q_ep, context_tile, jnp.zeros_like(d_q_i))
            d_q_i += lax.psum(part, spec.axis)
        d_q_i, d_k, d_v = _over_block(spec, step, episodes, q_ep, local_tile, (d_q_i, d_k, d_v))
        return lax.dynamic_update_slice_in_dim(d_q, d_q_i, i * size, 2), d_k, d_v, d_sink_key, d_sink_value

    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    empty = zeros(q.shape), zeros(k.shape), zeros(v.shape), zeros(sink.key.shape), zeros(sink.value.shape)
    d_q, d_k, d_v, d_sink_key, d_sink_value = lax.fori_loop(0, _num_tiles(used, size), query_tile, empty)
    d_sink = Sink(d_sink_key.astype(sink.key.dtype), d_sink_value.astype(sink.value.dtype))
    return (
        *(d.astype(x.dtype) for d, x in ((d_q, q), (d_k, k), (d_v, v))),
        d_sink,
        *jax.tree.map(zero_cotangent, (q_episodes, episodes, context, start, used)),
    )


_attend.defvjp(_attend_fwd, _attend_bwd)
