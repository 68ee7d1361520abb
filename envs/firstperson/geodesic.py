"""Shortest ways on a lattice of square cells, inside jit.

One may step from a free cell to a free neighbour, over a corner only where both cells beside the step are free as well.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

STEPS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))


def distances(free: jax.Array, sources: jax.Array, cell: float) -> jax.Array:
    """Length of the shortest way from every cell to a source, plus what that source starts with, in metres.

    free: bool [n, m]. sources: float32 [..., n, m]; what a way that ends there starts with, infinite where none may.
    cell: metres. Returns float32 [..., n, m]; infinite in cells that are not free or without a way. All cells are
    relaxed at once until nothing changes, so the result is exact up to rounding.
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
        # Rounding may let a way round a corner come out a hair shorter for ever: that is no improvement.
        return best, jnp.any(best < field - 1e-5)

    start = sources + closed
    return jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.ones((), bool)))[0]


def distance_at(field: jax.Array, position: jax.Array, cell: float) -> jax.Array:
    """The distance from a place between cell centres, float32 []: over the best of the four nearest centres.

    field: float32 [n, m], of `distances`; its axes are x and z. position: float32 [2]; (x, z) in metres.
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
