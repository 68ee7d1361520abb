"""The column phase: the nearest wall that each column of pixels sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.paint import WALL, Paint, Surface
from relic_jax.envs.firstperson.scene import WALL_HEIGHT, Camera, Walls, shade_upright

BOARD, DARKER = 0.5, 0.85
"""Width of a wall's boards in meters, and the brightness of every other one."""
BLOCK = 8  # walls per turn of the loop

Values = TypeVar("Values")


class Columns(NamedTuple):
    """The part of each column that surfaces cover. All leaves are [W] (the nearest wall) or [N, W] (solids).

    A surface covers the slopes low ≤ v < high: with `lower` for v < mid, with `upper` for v ≥ mid.

    Attributes:
        near: Float32; inverse forward distance of the near side, 0 if the column misses the surface.
        low: Float32; lowest covered slope.
        mid: Float32; slope at which the payload changes.
        high: Float32; end of the covered slopes.
        lower: Payload of the lower part, a tuple of arrays.
        upper: Payload of the upper part, a tuple of arrays.
    """

    near: jax.Array
    low: jax.Array
    mid: jax.Array
    high: jax.Array
    lower: tuple[jax.Array, ...]
    upper: tuple[jax.Array, ...]


def separately(values: Values) -> Values:
    """Compute values before their uses. Without a barrier, the compiler computes them again in each use."""
    return jax.lax.optimization_barrier(values)


def in_view(points: jax.Array | np.ndarray, camera: Camera) -> tuple[jax.Array, jax.Array]:
    """Return (forward, right), [...] each, of points [..., 2] relative to the camera."""
    x, z = jnp.moveaxis(jnp.asarray(points) - camera.position, -1, 0)
    cos, sin = camera.direction
    return x * cos - z * sin, x * sin + z * cos


def edge(f0: jax.Array, r0: jax.Array, f1: jax.Array, r1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (a, b) of the line through two points, whose inverse distance along column u is a − b·u."""
    area = r0 * f1 - r1 * f0
    area = jnp.where(jnp.abs(area) < 1e-9, 1e-9, area)
    return (r0 - r1) / area, (f0 - f1) / area


def nearest_wall(walls: Walls, camera: Camera, u: jax.Array, paint: Paint, textured: bool) -> Columns:
    """Return the nearest wall of each column, from floor to ceiling. `near` is 0 in columns without a wall."""
    ends = jnp.asarray(walls.ends)
    along = ends[:, 1] - ends[:, 0]
    normal = jnp.stack([along[:, 1], -along[:, 0]], -1)
    normal = normal / jnp.maximum(jnp.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    facing = jnp.sum(normal * (camera.position - ends[:, 0]), -1, keepdims=True) > 0
    shades = shade_upright(jnp.where(facing, normal, -normal))
    forward, right = in_view(ends, camera)
    line = edge(forward[:, 0], right[:, 0], forward[:, 1], right[:, 1])
    payload = paint.payload(Surface(jnp.asarray(walls.colour), shades, WALL))
    if textured:
        payload += paint.payload(Surface(jnp.asarray(walls.colour) * DARKER, shades, WALL))
    start = (jnp.zeros_like(u), tuple(jnp.zeros(u.shape, x.dtype) for x in payload))
    near, painted = _loop(lambda best, wall: _nearer_wall(u, best, wall), start, (forward, right, *line, payload))
    if textured:
        odd = _odd_board(near, camera, u)
        half = len(painted) // 2
        painted = tuple(jnp.where(odd, dark, plain) for plain, dark in zip(painted[:half], painted[half:], strict=True))
    painted = paint.stamp(painted, near)
    low, high = -camera.height * near, (WALL_HEIGHT - camera.height) * near
    return Columns(near, low, high, high, painted, painted)


def _odd_board(near: jax.Array, camera: Camera, u: jax.Array) -> jax.Array:
    """Return whether each column sees an odd board of its wall, bool [W]."""
    cos, sin = camera.direction
    distance = 1.0 / jnp.maximum(near, 1e-6)
    x, z = camera.position[0] + distance * (cos + u * sin), camera.position[1] + distance * (u * cos - sin)
    # Half a millimeter keeps a wall that lies exactly on the border of two boards from flickering.
    return (jnp.floor((x + z + 5e-4) / BOARD).astype(jnp.int32) & 1) == 1


def _nearer_wall(u: jax.Array, best: tuple, wall: tuple) -> tuple:
    """Update the nearest wall of each column, (near, payload), with one more wall."""
    f, r, a, b, payload = wall
    near = a - b * u
    nearer = ((r[0] - u * f[0] > 0) != (r[1] - u * f[1] > 0)) & (near > best[0])
    return jnp.where(nearer, near, best[0]), tuple(
        jnp.where(nearer, new, old) for new, old in zip(payload, best[1], strict=True)
    )


def _loop(function: Callable[[tuple, tuple], tuple], start: tuple, each: tuple) -> tuple:
    """Fold `function` over the leading axis of `each`, from `start`.

    More than BLOCK elements use a compiled loop, for two reasons: programs stay small, and the result of a loop is
    computed once for its column and not again in each of its pixels.
    """
    count = each[0].shape[0]

    def several(carry: tuple, block: tuple, size: int) -> tuple:
        for index in range(size):
            carry = function(carry, jax.tree.map(lambda x, i=index: x[i], block))
        return carry

    if count <= BLOCK:
        return several(start, each, count)
    turns = -(-count // BLOCK)

    def blocks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, turns * BLOCK - count)] + [(0, 0)] * (x.ndim - 1))  # no ray meets a wall of zeros
        return padded.reshape(turns, BLOCK, *x.shape[1:])

    head = jax.tree.map(blocks, each)
    return jax.lax.scan(lambda carry, block: (several(carry, block, BLOCK), None), start, head)[0]
