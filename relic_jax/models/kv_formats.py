"""How keys and values are stored: as floats, or as int8 with one scale per head and step.

A step's own key and value are rounded to the format before anybody attends to them (`rounded`), so that one step at a
time and a whole block see the same numbers. Training sees the rounding with a straight-through gradient (Bengio et al.
2013, arXiv 1308.3432).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

KVFormat = Literal["float32", "bfloat16", "int8"]
_INT8_MAX = 127.0


class Slots(NamedTuple):
    """Keys or values of one layer. data: [B, H, S, D]. scale: float32 [B, H, S] of int8 data, None of floats."""

    data: jax.Array
    scale: jax.Array | None = None

    @property
    def kv_format(self) -> KVFormat:
        """The format, from the dtype."""
        return cast(KVFormat, self.data.dtype.name)

    def decoded(self, dtype: jnp.dtype) -> jax.Array:
        """The numbers that are stored: `dtype` [B, H, S, D]."""
        if self.scale is None:
            return self.data.astype(dtype)
        return (self.data.astype(jnp.float32) * self.scale[..., None]).astype(dtype)


def encode(x: jax.Array, form: KVFormat) -> Slots:
    """x [B, H, S, D], stored. int8: each step's largest number in a head becomes ±127."""
    if form != "int8":
        return Slots(x.astype(form))
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(-1)
    scale = jnp.where(largest > 0, largest / _INT8_MAX, 1.0)
    return Slots(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def rounded(x: jax.Array, form: KVFormat) -> jax.Array:
    """x as it comes back out of storage, in its own dtype; the gradient is that of x."""
    if x.dtype == form:
        return x
    return x + lax.stop_gradient(encode(x, form).decoded(x.dtype) - x)


def empty(batch: int, heads: int, slots: int, width: int, form: KVFormat) -> Slots:
    """Zeros."""
    data = jnp.zeros((batch, heads, slots, width), form)
    return Slots(data, jnp.ones((batch, heads, slots), jnp.float32) if form == "int8" else None)


def write(slots: Slots, new: jax.Array, start: jax.Array) -> Slots:
    """Stores new [B, H, Q, D] in slots start … start+Q."""
    stored = encode(new, slots.kv_format)
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=2), slots, stored)


def tile(slots: Slots, start: jax.Array | int, size: int) -> Slots:
    """Slots start … start+size."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=2), slots)


def bytes_per_number(form: KVFormat, head_width: int) -> float:
    """Bytes that one stored number costs, its share of the scale included."""
    return 1 + 4 / head_width if form == "int8" else float(jnp.dtype(form).itemsize)
