"""The agent's body in a house: actions, sizes, and movement between obstacles that fill whole cells."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from relic_jax.envs.firstperson.house_plan import CELL, OBJECT

STOP, FORWARD, LEFT, RIGHT, UP, DOWN = range(6)
STEP = 0.25  # meters
TURN = math.radians(30)  # angle of turning, and of looking up and down
RADIUS = 0.12  # meters; the agent is a square with twice this side, which fits into a cell
EYE = 1.3
SUCCESS_DISTANCE = 2.0
SUCCESS_PIXELS, BORDER = 10, 5


def clear_way(free: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Return whether the segment from `start` to the center `end` of an object, [2] each, is free, bool []."""
    places = start + jnp.linspace(0.0, 1.0, 24)[:, None] * (end - start)
    x, z = jnp.floor(places / CELL).astype(jnp.int32).T
    occupied = jnp.sum((places - end) ** 2, -1) < (OBJECT * CELL) ** 2 / 2  # the square that the object occupies
    return jnp.all(free[x, z] | occupied)


def slide(free: jax.Array, position: jax.Array, towards: jax.Array) -> jax.Array:
    """Return the end of a step of 0.25 m, which moves along x, then along z, each up to the next obstacle.

    Obstacles fill whole cells, so this is exact sliding.

    Args:
        free: Bool [n, n]; free cells.
        position: Float32 [2]; (x, z).
        towards: Float32 [2]; unit vector of the step.
    """
    for axis in (0, 1):
        position = _slide_along(free, position, STEP * towards[axis], axis)
    return position


def _slide_along(free: jax.Array, position: jax.Array, way: jax.Array, axis: int) -> jax.Array:
    """Move along one axis by at most `way` (less than a cell), up to the agent's radius before an obstacle."""
    cells = free.shape[0]
    sign = jnp.where(way >= 0, 1.0, -1.0)
    front = position[axis] + way + sign * (RADIUS + 1e-5)  # the margin exceeds rounding errors
    ahead = jnp.floor(front / CELL).astype(jnp.int32)
    sides = jnp.floor((position[1 - axis] + jnp.array([-RADIUS, RADIUS])) / CELL).astype(jnp.int32)
    open_sides = []
    for side in (sides[0], sides[1]):
        x, z = (ahead, side) if axis == 0 else (side, ahead)
        inside = (x >= 0) & (x < cells) & (z >= 0) & (z < cells)
        open_sides.append(inside & free[jnp.clip(x, 0, cells - 1), jnp.clip(z, 0, cells - 1)])
    # The near face of the obstacle. A millimeter is left, so rounding never moves the agent into it.
    face = jnp.where(sign > 0, ahead * CELL, (ahead + 1) * CELL)
    limit = face - sign * (RADIUS + 1e-3)
    stopped = jnp.where(sign > 0, jnp.maximum(limit, position[axis]), jnp.minimum(limit, position[axis]))
    return position.at[axis].set(jnp.where(open_sides[0] & open_sides[1], position[axis] + way, stopped))
