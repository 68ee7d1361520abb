"""Attention of a single step against the cache on NVIDIA GPUs, by a kernel that reads every key and value once.

The context is split into parts that are computed in parallel, so that a few environments fill the device too. Within a
part, every row of a tile keeps its own online softmax, and sums cross rows only at the end of the part. A second kernel
merges the parts and the sink (Dao et al. 2023, "Flash-Decoding for long-context inference"). Tiles after the last
filled slot, or before the window, are neither read nor computed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from relic_jax.models.attention import reference
from relic_jax.models.attention.inputs import MASKED, AttentionInputs, Context, Sink
from relic_jax.models.kv_formats import Slots

try:
    from jax.experimental.pallas import triton
except ImportError:  # deprecated since jax 0.11; docs/kernels.md states why the kernel stays
    triton = None  # type: ignore[assignment]

NUMBERS = 2048
"""Numbers of keys that a program reads at a time, and twice as many of int8."""
TILES = 8
"""Tiles that a program reads one after the other."""
WARPS = 4


def available(width: int) -> bool:
    """Return whether there is a kernel for heads of ``width`` numbers: powers of two from 16 on, if JAX has Triton."""
    return triton is not None and width >= 16 and not width & (width - 1)


def attend_step(inputs: AttentionInputs) -> jax.Array:
    """Compute attention for one step per environment: by `flash_decode` on CUDA devices, else by the definition.

    Args:
        inputs: A single step (Q = 1) and a context that includes it. See `AttentionInputs`.

    Returns:
        ``[B, H, 1, D]`` in the dtype of ``inputs.query``.
    """

    def fused(query: jax.Array) -> jax.Array:
        return flash_decode(inputs.replace(query=query))

    def step(query: jax.Array) -> jax.Array:
        return reference.attend_step(inputs.replace(query=query))

    return lax.platform_dependent(inputs.query, cuda=fused, default=step)


def flash_decode(inputs: AttentionInputs, *, interpret: bool = False) -> jax.Array:
    """Compute attention for one step per environment, with products and sums in float32.

    Args:
        inputs: A single step (Q = 1) and a context that includes it. See `AttentionInputs`.
        interpret: Run the kernels in XLA, for tests.

    Returns:
        ``[B, H, 1, D]`` in the dtype of ``inputs.query``.
    """
    query, context = inputs.query[:, :, 0], inputs.context
    episode = inputs.episodes[:, 0] if inputs.within_episode else None
    parts = _parts(query, context, episode, None if inputs.window is None else jnp.asarray(inputs.window), interpret)
    return _merged(query, inputs.sink, parts, part_count(query.shape[-1], context), interpret)[:, :, None]


def tile_slots(width: int, int8: bool) -> int:
    """Return the number of slots that a program reads at a time, for heads of ``width`` numbers."""
    return max(1, NUMBERS // width) * (2 if int8 else 1)


def part_count(width: int, context: Context) -> int:
    """Return the number of parts that a context is split into."""
    return -(-context.capacity // (TILES * tile_slots(width, context.keys.scale is not None)))


def _parts(
    query: jax.Array, context: Context, episode: jax.Array | None, window: jax.Array | None, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the softmax of each part of the context: top, total ``[B, H, P]``; out ``[B, H, P, D]``, unnormalised.

    P is a power of two, as Triton requires. Only the first `part_count` parts are written.
    """
    batch, heads, width = query.shape
    capacity, int8 = context.capacity, context.keys.scale is not None
    count = part_count(width, context)
    parts = pl.next_power_of_2(count)
    length = jnp.broadcast_to(context.length, (batch,)).astype(jnp.int32)
    first = jnp.zeros((batch,), jnp.int32) if window is None else jnp.maximum(0, length - window).astype(jnp.int32)

    def per_environment(b: int, h: int, p: int) -> tuple[Any, ...]:
        return (b,)

    def per_slot(*last: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, capacity, *last), lambda b, h, p: (b, h, 0, *(0 for _ in last)))

    def per_part(*last: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, None, *last), lambda b, h, p: (b, h, p, *(0 for _ in last)))

    def slots(x: Slots) -> tuple[list[jax.Array], list[pl.BlockSpec]]:
        if x.scale is None:
            return [x.data], [per_slot(width)]
        return [x.data, x.scale], [per_slot(width), per_slot()]

    keys, key_specs = slots(context.keys)
    values, value_specs = slots(context.values)
    within = [] if episode is None else [context.episodes, episode]
    within_specs = [pl.BlockSpec((None, capacity), lambda b, h, p: (b, 0)), pl.BlockSpec((None,), per_environment)]
    call = pl.pallas_call(
        functools.partial(_part_kernel, size=tile_slots(width, int8), int8=int8, within=episode is not None),
        out_shape=[jax.ShapeDtypeStruct((batch, heads, parts, *last), jnp.float32) for last in ((), (), (width,))],
        grid=(batch, heads, count),
        in_specs=[
            pl.BlockSpec((None,), per_environment),
            pl.BlockSpec((None,), per_environment),
            pl.BlockSpec((None, None, width), lambda b, h, p: (b, h, 0)),
            *key_specs,
            *value_specs,
            *(within_specs if within else []),
        ],
        out_specs=[per_part(), per_part(), per_part(width)],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=2),
        interpret=interpret,
        name="attend_step",
    )
    top, total, out = call(first, length, query, *keys, *values, *within)
    return top, total, out


def _part_kernel(
    first_ref: Any, length_ref: Any, query_ref: Any, *refs: Any, size: int, int8: bool, within: bool
) -> None:
    """Compute one part of one head's context in tiles of ``size`` slots.

    The refs are keys, values (each followed by its scales if int8), episodes and the step's episode if ``within``, and
    the results top ``[]``, total ``[]`` and out ``[D]``.
    """
    per_slot, (top_ref, total_ref, out_ref) = refs[:-3], refs[-3:]
    key, value = (per_slot[:2], per_slot[2:4]) if int8 else ((per_slot[0], None), (per_slot[1], None))
    episodes_ref, episode_ref = per_slot[-2:] if within else (None, None)
    start = pl.program_id(2) * TILES * size
    first, end = jnp.maximum(first_ref[...], start), jnp.minimum(length_ref[...], start + TILES * size)
    query = query_ref[...].astype(jnp.float32) * (1.0 / math.sqrt(query_ref.shape[-1]))

    def tile(index: jax.Array, running: tuple[jax.Array, jax.Array, jax.Array]):
        top, total, out = running
        here = pl.ds(index * size, size)
        slot = index * size + jnp.arange(size)
        visible = (slot >= first) & (slot < end)
        if within:
            visible &= triton.load(episodes_ref.at[here], mask=visible, other=-1) == episode_ref[...]
        scores = jnp.where(visible, jnp.sum(_rows(key, here, visible) * query[None], axis=1), MASKED)
        new_top = jnp.maximum(top, scores)
        decay, weights = jnp.exp(top - new_top), jnp.exp(scores - jnp.maximum(new_top, MASKED / 2))
        update = weights[:, None] * _rows(value, here, visible)
        return new_top, total * decay + weights, out * decay[:, None] + update

    empty = jnp.full(size, MASKED), jnp.zeros(size, jnp.float32), jnp.zeros((size, query.shape[0]), jnp.float32)
    top, total, out = lax.fori_loop(first // size, (end + size - 1) // size, tile, empty)
    top_ref[...], weights = _relative(top)
    total_ref[...], out_ref[...] = jnp.sum(weights * total), jnp.sum(weights[:, None] * out, axis=0)


def _relative(tops: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the maximum of the tops of online softmaxes, and the factor that rescales each softmax to it.

    The factor of a softmax that has seen no key is 0.
    """
    top = jnp.max(tops)
    return top, jnp.exp(tops - jnp.maximum(top, MASKED / 2))


def _rows(slots: tuple[Any, Any], here: Any, visible: jax.Array) -> jax.Array:
    """Return the keys or values of a tile, float32 ``[size, D]``. They are 0 where they are not visible."""
    data, scale = slots
    rows = triton.load(data.at[here, :], mask=visible[:, None], other=0).astype(jnp.float32)
    return rows if scale is None else rows * triton.load(scale.at[here], mask=visible, other=0.0)[:, None]


def _merged(
    query: jax.Array, sink: Sink | None, parts: tuple[jax.Array, jax.Array, jax.Array], count: int, interpret: bool
) -> jax.Array:
    """Merge the parts and the sink into the output ``[B, H, D]``, in the dtype of the query."""
    batch, heads, width = query.shape
    slots = parts[0].shape[2]

    def per_part(*last: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, slots, *last), lambda b, h: (b, h, 0, *(0 for _ in last)))

    per_head = pl.BlockSpec((None, width), lambda b, h: (h, 0))
    each = pl.BlockSpec((None, None, width), lambda b, h: (b, h, 0))
    return pl.pallas_call(
        functools.partial(_merge_kernel, count=count),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        grid=(batch, heads),
        in_specs=[per_part(), per_part(), per_part(width), each, *([] if sink is None else [per_head, per_head])],
        out_specs=each,
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="merge_parts",
    )(*parts, query, *(sink or ()))


def _merge_kernel(top_ref: Any, total_ref: Any, out_ref: Any, query_ref: Any, *refs: Any, count: int) -> None:
    """Merge the parts of one head. The last refs are the sink's key and value ``[D]``, if any, and the result."""
    *sink_refs, result_ref = refs
    slots = top_ref.shape[0]
    here, written = pl.ds(0, slots), jnp.arange(slots) < count
    tops = triton.load(top_ref.at[here], mask=written, other=MASKED)
    totals = triton.load(total_ref.at[here], mask=written, other=0.0)
    outs = triton.load(out_ref.at[here, :], mask=written[:, None], other=0.0)
    top, weights = _relative(tops)
    total, out = jnp.sum(weights * totals), jnp.sum(weights[:, None] * outs, axis=0)
    if sink_refs:
        key, value = (ref[...].astype(jnp.float32) for ref in sink_refs)
        score = jnp.sum(query_ref[...].astype(jnp.float32) * key) * (1.0 / math.sqrt(key.shape[0]))
        new_top = jnp.maximum(top, score)
        decay, weight = jnp.exp(top - new_top), jnp.exp(score - new_top)
        total, out = total * decay + weight, out * decay + weight * value
    result_ref[...] = (out / total).astype(result_ref.dtype)
