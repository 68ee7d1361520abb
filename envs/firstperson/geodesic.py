"""Shortest paths on a grid of square cells, inside jit.

Paths step from a free cell to a free neighbor. A diagonal step requires that both cells beside it are free too.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

STEPS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))


def distances(free: jax.Array, sources: jax.Array, cell: float) -> jax.Array:
    """Return the length of the shortest path from every cell to a source, plus the offset of this source.

    All cells are relaxed at once until there is no change, so the result is exact up to rounding.

    Args:
        free: Bool [n, m]; free cells.
        sources: Float32 [..., n, m]; offset of each source in meters, infinite for cells that are not sources.
        cell: Side of a cell in meters.

    Returns:
        Float32 [..., n, m] in meters; infinite for cells that are not free or have no path.
    """
    rows, columns = free.shape
    closed = jnp.where(free, 0.0, jnp.inf)

    def shifted(field: jax.Array, step: tuple[int, int], fill: float | bool) -> jax.Array:
        padded = jnp.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1), (1, 1)], constant_values=fill)
        return padded[..., 1 + step[0] : 1 + step[0] + rows, 1 + step[1] : 1 + step[1] + columns]

    costs = []
    for i, j in STEPS:
        passable = free & shifted(free, (i, 0), False) & shifted(free, (0, j), False)
        costs.append(jnp.where(passable, cell * math.hypot(i, j), jnp.inf))

    def relax(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        field, _ = carry
        best = field
        for step, cost in zip(STEPS, costs, strict=True):
            best = jnp.minimum(best, shifted(field, step, jnp.inf) + cost)
        # The tolerance ends the loop: rounding could yield tiny improvements forever.
        return best, jnp.any(best < field - 1e-5)

    start = sources + closed
    return jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.ones((), bool)))[0]


def distance_at(field: jax.Array, position: jax.Array, cell: float) -> jax.Array:
    """Return the distance from a position between cell centers, via the best of the four nearest centers.

    Args:
        field: Float32 [n, m]; distances of the cells, with axes x and z.
        position: Float32 [2]; (x, z) in meters.
        cell: Side of a cell in meters.

    Returns:
        Float32 [] in meters.
    """
    corner = jnp.floor(position / cell - 0.5).astype(jnp.int32)
    best = jnp.asarray(jnp.inf, jnp.float32)
    for i in (0, 1):
        for j in (0, 1):
            node = corner + jnp.array([i, j])
            inside = jnp.all((node >= 0) & (node < jnp.array(field.shape)))
            x, z = jnp.clip(node, 0, jnp.array(field.shape) - 1)
            way = jnp.linalg.norm((node + 0.5) * cell - position)
            best = jnp.minimum(best, jnp.where(inside, field[x, z] + way, jnp.inf))
    return best
