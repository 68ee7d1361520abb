"""Shortest paths on a grid of square cells, inside jit.

Paths step from a free cell to a free neighbor. A diagonal step requires that both cells beside it are free too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from relic_jax.envs.firstperson.columns import separately

MARGIN = 1.5
"""Meters beyond the distance of the position up to which `distances_around` is exact."""
STEPS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))


def distances(free: jax.Array, sources: jax.Array, cell: float) -> jax.Array:
    """Return the length of the shortest path from every cell to a source, plus the offset of this source.

    All cells are relaxed at once until there is no change, so the result is exact up to rounding. On CPU, the loops of
    a batch run one after the other: a loop over the whole batch would repeat all of them until the longest ends.

    Args:
        free: Bool [n, m]; free cells.
        sources: Float32 [..., n, m]; offset of each source in meters, infinite for cells that are not sources.
        cell: Side of a cell in meters.

    Returns:
        Float32 [..., n, m] in meters; infinite for cells that are not free or have no path.
    """
    return _one_after_the_other(functools.partial(_field, cell))(free, sources)


def _field(cell: float, free: jax.Array, sources: jax.Array) -> jax.Array:
    """Compute `distances` for one grid."""
    relaxed = _relaxation(free, cell)

    def relax(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        field, _ = carry
        best = relaxed(field)
        # The tolerance ends the loop: rounding could yield tiny improvements forever.
        return best, jnp.any(best < field - 1e-5)

    start = sources + jnp.where(free, 0.0, jnp.inf)
    return jax.lax.while_loop(lambda carry: carry[1], relax, (start, jnp.ones((), bool)))[0]


def distances_around(free: jax.Array, sources: jax.Array, cell: float, position: jax.Array) -> jax.Array:
    """Return the length of the shortest path to a source, for paths in any direction, near a position.

    Paths of `distances` move in eight directions. These distances approximate those of paths in any direction: they
    solve the eikonal equation |∇d| = 1 with first-order upwind differences (Rouy and Tourin 1992), by relaxing all
    cells at once. The loop ends when the distances up to `MARGIN` above that of the position have converged; larger
    ones are upper bounds. Batches run as in `distances`.

    Args:
        free: Bool [n, m]; free cells.
        sources: Float32 [n, m]; offset of each source in meters, infinite for cells that are not sources.
        cell: Side of a cell in meters.
        position: Float32 [2]; (x, z) in a free cell.

    Returns:
        Float32 [n, m] in meters; infinite for cells that are not free or that no path has reached.
    """
    return _one_after_the_other(functools.partial(_search, cell))(free, sources, position)


def _one_after_the_other(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a function of arrays whose `vmap` calls it for one row after the other on CPU."""
    batched = custom_vmap(function)

    @batched.def_vmap
    def rows(size: int, is_batched: list[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        def whole(x: jax.Array, split: bool) -> jax.Array:
            return x if split else jnp.broadcast_to(x, (size, *x.shape))

        each = map(whole, arrays, is_batched)
        at_once, in_turn = jax.vmap(function), lambda *x: jax.lax.map(lambda row: function(*row), x)
        return jax.lax.platform_dependent(*each, cpu=in_turn, default=at_once), True

    return batched


def _search(cell: float, free: jax.Array, sources: jax.Array, position: jax.Array) -> jax.Array:
    """Compute `distances_around` for one grid."""
    x, z = jnp.floor(position / cell).astype(jnp.int32)

    def relax(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        field, reach, _ = carry
        best = jnp.where(free, jnp.minimum(field, _upwind(field, cell)), jnp.inf)
        # An iteration moves distances by one cell along an axis, which is at least cell / √2 along any path.
        return best, reach + cell / math.sqrt(2), jnp.any(best < field - 1e-5) & (best[x, z] + MARGIN > reach)

    start = sources + jnp.where(free, 0.0, jnp.inf), jnp.asarray(cell), jnp.ones((), bool)
    return jax.lax.while_loop(lambda carry: carry[2], relax, start)[0]


def _upwind(field: jax.Array, cell: float) -> jax.Array:
    """Solve the eikonal equation for each cell, given the distances of its four neighbors, float32 [n, m]."""
    around = jnp.pad(field, 1, constant_values=jnp.inf)
    along_x = jnp.minimum(around[:-2, 1:-1], around[2:, 1:-1])
    along_z = jnp.minimum(around[1:-1, :-2], around[1:-1, 2:])
    near, far = jnp.minimum(along_x, along_z), jnp.maximum(along_x, along_z)
    two_sided = far < near + cell  # otherwise, only the nearer neighbor is upwind
    gap = jnp.where(two_sided, far - near, 0.0)  # avoids inf - inf
    return near + jnp.where(two_sided, (gap + jnp.sqrt(2 * cell**2 - gap**2)) / 2, cell)


def _relaxation(free: jax.Array, cell: float) -> Callable[[jax.Array], jax.Array]:
    """Return a function that relaxes all distances, float32 [..., n, m], over one step."""
    rows, columns = free.shape

    def padded(field: jax.Array, fill: float | bool) -> jax.Array:
        return jnp.pad(field, [(0, 0)] * (field.ndim - 2) + [(1, 1), (1, 1)], constant_values=fill)

    def shifted(field: jax.Array, i: int, j: int) -> jax.Array:
        return field[..., 1 + i : 1 + i + rows, 1 + j : 1 + j + columns]

    closed, costs = padded(free, False), []
    for i, j in STEPS:
        passable = free & shifted(closed, i, 0) & shifted(closed, 0, j)
        costs.append(jnp.where(passable, cell * math.hypot(i, j), jnp.inf))

    def relaxed(field: jax.Array) -> jax.Array:
        around, best = separately(padded(field, jnp.inf)), field  # else each of the shifts would pad it again
        for (i, j), cost in zip(STEPS, costs, strict=True):
            best = jnp.minimum(best, shifted(around, i, j) + cost)
        return best

    return relaxed


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


def interpolated(field: jax.Array, position: jax.Array, cell: float) -> jax.Array:
    """Return the bilinear interpolation of the distances at the four nearest cell centers, ignoring infinite ones.

    `distance_at` overestimates by an amount that depends on the position inside a cell; this varies smoothly, so it
    can be compared between nearby positions.

    Args:
        field: Float32 [n, m]; distances of the cells, with axes x and z.
        position: Float32 [2]; (x, z) in meters.
        cell: Side of a cell in meters.

    Returns:
        Float32 [] in meters; infinite if all four are.
    """
    corner = jnp.floor(position / cell - 0.5).astype(jnp.int32)
    share = position / cell - 0.5 - corner
    total, weights = jnp.zeros(()), jnp.zeros(())
    for i in (0, 1):
        for j in (0, 1):
            x, z = jnp.clip(corner + jnp.array([i, j]), 0, jnp.array(field.shape) - 1)
            weight = (share[0] if i else 1 - share[0]) * (share[1] if j else 1 - share[1]) + 1e-6
            weight = jnp.where(jnp.isfinite(field[x, z]), weight, 0.0)
            total += jnp.where(weight > 0, weight * field[x, z], 0.0)
            weights += weight
    return jnp.where(weights > 0, total / jnp.maximum(weights, 1e-9), jnp.inf)
