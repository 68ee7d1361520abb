"""What the renderer paints with: packed colors and object ids, or inverse distances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

BACKGROUND, WALL = 0, 1
"""Object ids: of floor, ceiling and sky; of walls. The id of solid k is k + FIRST_SOLID."""
FIRST_SOLID = 2
MAX_SOLIDS = 255 - FIRST_SOLID
WIDE_BYTES = ((0, 0), (10, 8), (20, 16))
"""Where each channel is in a sum of wide colors, and where in four bytes; in bits."""


class Surface(NamedTuple):
    """A surface to paint. Arrays broadcast against one another.

    Attributes:
        colour: Float32 [..., 3]; base color.
        shade: Float32 [...]; brightness.
        identity: Int or int32 [...]; object id.
        level: Float32 [...]; height of a horizontal surface above the eye, infinite for other surfaces.
    """

    colour: jax.Array
    shade: jax.Array | float
    identity: jax.Array | int
    level: jax.Array | float = math.inf


class Paint(NamedTuple):
    """A kind of image, such as colors or depth.

    Attributes:
        payload: Returns the values that a surface leaves in the image, a tuple of arrays.
        stamp: Adds the inverse distance of each column to the payload of upright surfaces.
    """

    payload: Callable[[Surface], tuple[jax.Array, ...]]
    stamp: Callable[[tuple[jax.Array, ...], jax.Array], tuple[jax.Array, ...]]


def _pack(surface: Surface, bits: int) -> jax.Array:
    """Pack the lit color into bytes that are `bits` apart, uint32 [...]."""
    lit = jnp.clip(surface.colour * jnp.asarray(surface.shade)[..., None], 0.0, 1.0)
    red, green, blue = jnp.moveaxis(jnp.round(255.0 * lit).astype(jnp.uint32), -1, 0)
    return red | green << bits | blue << 2 * bits


def _packed(surface: Surface) -> tuple[jax.Array, ...]:
    """Pack color and object id into the bytes of a uint32: red lowest, object id highest."""
    return (_pack(surface, 8) | jnp.asarray(surface.identity).astype(jnp.uint32) << 24,)


def _packed_wide(surface: Surface) -> tuple[jax.Array, ...]:
    """Pack the color into three bytes 10 bits apart, which leaves room for a sum of four."""
    return (_pack(surface, 10),)


def _inverse_level(surface: Surface) -> tuple[jax.Array, ...]:
    """Return the inverse distance as constant + slope · v. The constant of upright surfaces is stamped later."""
    shape = jnp.broadcast_shapes(jnp.shape(surface.colour)[:-1], jnp.shape(surface.level))
    return jnp.zeros(shape, jnp.float32), jnp.broadcast_to(1.0 / jnp.asarray(surface.level, jnp.float32), shape)


COLOUR = Paint(_packed, lambda payload, near: payload)
WIDE_COLOUR = Paint(_packed_wide, lambda payload, near: payload)
DEPTH = Paint(_inverse_level, lambda payload, near: (near, payload[1]))


def to_bytes(packed: jax.Array) -> jax.Array:
    """Convert uint32 [...] to uint8 [..., 4], lowest byte first."""
    return jax.lax.bitcast_convert_type(packed, jnp.uint8)
