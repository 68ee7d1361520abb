"""How the cache stores keys and values: as floats, or as int8 with one scale per head and step.

The key and value of a step are rounded to the format before any step attends to them (`rounded`), so one step at a time
and a whole block see the same numbers. In training, rounding has a straight-through gradient (Bengio et al. 2013, arXiv
1308.3432).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

KVFormat = Literal["float32", "bfloat16", "int8"]
_INT8_MAX = 127.0


class Slots(NamedTuple):
    """Stored keys or values of one layer.

    Attributes:
        data: ``[B, H, S, D]`` in the dtype of the format.
        scale: float32 ``[B, H, S]`` if the format is int8, else None.
    """

    data: jax.Array
    scale: jax.Array | None = None

    @property
    def kv_format(self) -> KVFormat:
        """The format, given by the dtype of `data`."""
        return cast(KVFormat, self.data.dtype.name)

    def decoded(self, dtype: jnp.dtype) -> jax.Array:
        """Return the stored numbers as ``dtype``, ``[B, H, S, D]``."""
        if self.scale is None:
            return self.data.astype(dtype)
        return (self.data.astype(jnp.float32) * self.scale[..., None]).astype(dtype)


def encode(x: jax.Array, kv_format: KVFormat) -> Slots:
    """Convert keys or values to a format.

    In int8, the largest magnitude of each head and step becomes 127.

    Args:
        x: ``[B, H, S, D]``.
        kv_format: The format.

    Returns:
        The stored numbers.
    """
    if kv_format != "int8":
        return Slots(x.astype(kv_format))
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(-1)
    scale = jnp.where(largest > 0, largest / _INT8_MAX, 1.0)
    return Slots(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def rounded(x: jax.Array, kv_format: KVFormat) -> jax.Array:
    """Round to the numbers that a format can store. The gradient is that of the identity.

    Args:
        x: ``[B, H, S, D]``.
        kv_format: The format.

    Returns:
        The rounded numbers, in the dtype of ``x``.
    """
    if x.dtype == kv_format:
        return x
    return x + lax.stop_gradient(encode(x, kv_format).decoded(x.dtype) - x)


def empty(batch: int, heads: int, slots: int, width: int, kv_format: KVFormat) -> Slots:
    """Return slots that hold zeros.

    Args:
        batch: B, environments.
        heads: H, heads.
        slots: S, slots.
        width: D, numbers per head.
        kv_format: The format.

    Returns:
        Slots of shape ``[B, H, S, D]``.
    """
    data = jnp.zeros((batch, heads, slots, width), kv_format)
    return Slots(data, jnp.ones((batch, heads, slots), jnp.float32) if kv_format == "int8" else None)


def write(slots: Slots, new: jax.Array, start: jax.Array, stores: jax.Array | None = None) -> Slots:
    """Store ``new`` in slots.

    Args:
        slots: The slots.
        new: ``[B, H, Q, D]``.
        start: int32 ``[]``. The slots ``start … start + Q − 1`` are written.
        stores: bool ``[]``, whether anything is written. None if always.
    """
    stored = encode(new, slots.kv_format)
    if stores is not None:
        old = tile(slots, start, new.shape[2])
        stored = jax.tree.map(lambda x, y: jnp.where(stores, x, y), stored, old)
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, start, axis=2), slots, stored)


def tile(slots: Slots, start: jax.Array | int, size: int) -> Slots:
    """Return the slots ``start … start + size − 1``."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size, axis=2), slots)


def bytes_per_number(kv_format: KVFormat, head_width: int) -> float:
    """Return the bytes of one stored number of a head, its share of the scale included."""
    return 1 + 4 / head_width if kv_format == "int8" else float(jnp.dtype(kv_format).itemsize)
