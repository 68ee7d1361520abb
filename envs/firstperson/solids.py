"""The column phase: the nearest solids that each column of pixels sees."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from relic_jax.envs.firstperson.columns import Columns, edge, in_view
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.paint import FIRST_SOLID, MAX_SOLIDS, WALL, Paint, Surface
from relic_jax.envs.firstperson.scene import (
    BOX,
    CYLINDER,
    SHADE_DOWN,
    SHADE_UP,
    SPHERE,
    Camera,
    Solids,
    TooManyObjectsError,
    shade,
    shade_upright,
)

NEVER = 1e9  # a slope that no row reaches


def nearest_in_view(solids: Solids, camera: Camera, lens: Lens) -> Solids:
    """Return the `lens.solids` nearest solids inside the horizontal field of view, or all if there are not more.

    `identity` of the result holds their object ids.

    Raises:
        TooManyObjectsError: There are more than MAX_SOLIDS solids.
    """
    count = solids.shape.shape[0]
    if count > MAX_SOLIDS:
        raise TooManyObjectsError(f"a scene holds {count} solids; allowed: at most {MAX_SOLIDS}, ids are single bytes")
    solids = dataclasses.replace(solids, identity=jnp.arange(count, dtype=jnp.int32) + FIRST_SOLID)
    if count <= lens.solids:
        return solids
    forward, right = in_view(solids.centre, camera)
    radius, edge = jnp.linalg.norm(jnp.asarray(solids.half), axis=-1), float(lens.columns(0.0)[0])
    visible = (forward > -radius) & (jnp.abs(right) + edge * forward < radius * math.hypot(1, edge))
    visible &= jnp.asarray(solids.top) > jnp.asarray(solids.bottom)
    order = jnp.where(visible, forward**2 + right**2, jnp.inf)
    index = jnp.arange(count)
    before = (order < order[:, None]) | ((order == order[:, None]) & (index < index[:, None]))
    rank = before.sum(1)
    nearest = jnp.sum(jnp.where(rank == jnp.arange(lens.solids)[:, None], index, 0), 1)
    return jax.tree.map(lambda x: jnp.asarray(x)[nearest], solids)


def solid_columns(solids: Solids, camera: Camera, u: jax.Array, wall: jax.Array, paint: Paint) -> Columns:
    """Return the columns of solids, [N, W], unsorted, without those behind the wall.

    Args:
        solids: N solids.
        camera: The camera.
        u: Float32 [W]; the columns.
        wall: Float32 [W]; inverse distance of the nearest wall.
        paint: The kind of image.
    """
    make = {BOX: _box_columns, CYLINDER: _cylinder_columns, SPHERE: _sphere_columns}
    shape = jnp.asarray(solids.shape)[:, None]
    columns = None
    for kind in solids.shapes:
        of_kind = make[kind](solids, camera, u, paint)
        columns = of_kind if columns is None else _where(shape == kind, of_kind, columns)
    if columns is None:
        empty = tuple(jnp.zeros((0, *u.shape), x.dtype) for x in paint.payload(Surface(jnp.zeros((0, 3)), 1.0, 0)))
        return Columns(*(jnp.zeros((0, *u.shape)),) * 4, empty, empty)
    visible = (columns.near > wall) & (jnp.asarray(solids.top) > jnp.asarray(solids.bottom))[:, None]
    low, high = jnp.where(visible, columns.low, NEVER), jnp.where(visible, columns.high, NEVER)
    return columns._replace(near=jnp.where(visible, columns.near, 0.0), low=low, high=high)


def _where(condition: jax.Array, first: Columns, second: Columns) -> Columns:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def _surface(solids: Solids, light: jax.Array | float, level: jax.Array | float = math.inf) -> Surface:
    """Return one surface of each solid. light: float32 [N]."""
    return Surface(jnp.asarray(solids.colour), light, _identity(solids), level)


def _identity(solids: Solids) -> jax.Array:
    """Return object ids, int32 [N]; solids without ids count as walls."""
    return jnp.full(solids.shape.shape, WALL, jnp.int32) if solids.identity is None else jnp.asarray(solids.identity)


def _box_columns(solids: Solids, camera: Camera, u: jax.Array, paint: Paint) -> Columns:
    """Return the columns of boxes.

    A ray enters a convex outline through an edge that runs from its left to its right, and leaves it through one that
    runs from right to left.
    """
    cos, sin = jnp.cos(solids.yaw), jnp.sin(solids.yaw)
    ahead, aside = jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)  # axes of the box in the world, [N, 2]
    reach, breadth = ahead * solids.half[:, :1], aside * solids.half[:, 1:]
    corners = jnp.stack([reach + breadth, reach - breadth, -reach - breadth, -reach + breadth], 1)
    forward, right = in_view(jnp.asarray(solids.centre)[:, None] + corners, camera)
    side = [right[:, k, None] - u * forward[:, k, None] > 0 for k in range(4)]  # side of the ray of each corner, [N, W]
    near = far = jnp.zeros((corners.shape[0], *u.shape))
    sides = tuple(jnp.zeros(near.shape, x.dtype) for x in paint.payload(_surface(solids, 1.0)))
    for k, normal in enumerate((ahead, -aside, -ahead, aside)):
        after = (k + 1) % 4
        a, b = edge(forward[:, k], right[:, k], forward[:, after], right[:, after])
        inverse = a[:, None] - b[:, None] * u
        enters, leaves = ~side[k] & side[after], side[k] & ~side[after]
        near, far = jnp.where(enters, inverse, near), jnp.where(leaves, inverse, far)
        payload = paint.payload(_surface(solids, shade_upright(normal)))
        sides = tuple(jnp.where(enters, new[:, None], old) for new, old in zip(payload, sides, strict=True))
    return _prism(solids, camera, near, far, sides, paint)


def _circle(solids: Solids, camera: Camera, u: jax.Array) -> tuple[jax.Array, ...]:
    """Intersect the columns with the circles of the floor plan.

    Returns:
        (forward, right, q, along, root), [N, 1] three times and [N, W] twice. The ray u meets a circle at the inverse
        distances (along ± root) / q. root is 0, not NaN, for a ray that misses.
    """
    forward, right = (x[:, None] for x in in_view(solids.centre, camera))
    q = forward**2 + right**2 - solids.half[:, :1] ** 2
    along = forward + u * right
    return forward, right, q, along, jnp.sqrt(jnp.maximum(along**2 - (1 + u**2) * q, 0.0))


def _cylinder_columns(solids: Solids, camera: Camera, u: jax.Array, paint: Paint) -> Columns:
    """Return the columns of upright cylinders, lit by the normal in each column."""
    forward, right, q, along, root = _circle(solids, camera, u)
    hit = (root > 0) & (q > 0)
    near, far = jnp.where(hit, (along + root) / q, 0.0), jnp.where(hit, (along - root) / q, 0.0)
    distance = 1.0 / jnp.maximum(near, 1e-6)
    f, r = (distance - forward) / solids.half[:, :1], (distance * u - right) / solids.half[:, :1]
    cos, sin = camera.direction
    light = shade_upright(jnp.stack([f * cos + r * sin, r * cos - f * sin], -1))
    identity = _identity(solids)[:, None]
    payload = paint.payload(Surface(jnp.asarray(solids.colour)[:, None], light, identity))
    return _prism(solids, camera, near, far, payload, paint)


def _prism(
    solids: Solids, camera: Camera, near: jax.Array, far: jax.Array, side: tuple[jax.Array, ...], paint: Paint
) -> Columns:
    """Return the sides between `bottom` and `top` with the visible horizontal face: the top or the bottom."""
    above = (jnp.asarray(solids.top) - camera.height)[:, None]
    under = (jnp.asarray(solids.bottom) - camera.height)[:, None]
    side = paint.stamp(side, near)
    top = paint.payload(_surface(solids, SHADE_UP, above[:, 0]))
    bottom = paint.payload(_surface(solids, SHADE_DOWN, under[:, 0]))
    low, high = under * jnp.where(under > 0, far, near), above * jnp.where(above < 0, far, near)
    mid = jnp.where(under > 0, under * near, jnp.where(above < 0, above * near, NEVER))
    lower = tuple(jnp.where(under > 0, level[:, None], face) for level, face in zip(bottom, side, strict=True))
    upper = tuple(jnp.where(above < 0, level[:, None], face) for level, face in zip(top, side, strict=True))
    return Columns(near, low, mid, high, lower, upper)


def _sphere_columns(solids: Solids, camera: Camera, u: jax.Array, paint: Paint) -> Columns:
    """Return the columns of spheres, exact in outline.

    A sphere has two shades: those of the points 45° above and 45° below its center on the side of the eye. The ray
    (1, u, v) meets the sphere of radius ρ at (forward, right, −k) from the eye, with k its depth below the eye, iff
    (along − k·v)² ≥ (1 + u² + v²)·(q + k²), a quadratic in v with the roots (−along·k ± root·√(q + k²)) / q.
    """
    _, _, q, along, root = _circle(solids, camera, u)
    radius = solids.half[:, :1]
    k = camera.height - (jnp.asarray(solids.bottom)[:, None] + radius)
    hit = (root > 0) & (q > 0)
    safe = jnp.where(q > 0, q, 1.0)
    reach = root * jnp.sqrt(jnp.maximum(safe + k**2, 0.0))
    low, high = (-along * k - reach) / safe, (-along * k + reach) / safe
    near = jnp.where(hit, (along + root) / safe, 0.0)
    towards = camera.position - jnp.asarray(solids.centre)
    towards = towards / jnp.maximum(jnp.linalg.norm(towards, axis=-1, keepdims=True), 1e-9)
    half = math.sqrt(0.5)
    level = jnp.full_like(towards[:, 0], half)
    bands = []
    for rise in (-level, level):
        normal = jnp.stack([half * towards[:, 0], rise, half * towards[:, 1]], -1)
        payload = paint.payload(_surface(solids, shade(normal)))
        bands.append(paint.stamp(tuple(jnp.broadcast_to(x[:, None], near.shape) for x in payload), near))
    return Columns(near, low, (low + high) / 2, high, *bands)


def nearest_first(columns: Columns, layers: int) -> Columns:
    """Return the `layers` nearest of N columns, nearest first: [min(layers, N), W]."""
    count = columns.near.shape[0]
    if count <= 1:
        return columns

    def pick(near: jax.Array, _: None) -> tuple[jax.Array, Columns]:
        chosen = near == near.max(0)
        picked = jax.tree.map(lambda x: _pick(x, chosen), columns._replace(near=near))
        return jnp.where(chosen, -1.0, near), picked

    # A loop, although a short one: its inputs are computed once and not again for every layer and row.
    return jax.lax.scan(pick, columns.near, None, length=min(layers, count))[1]


def _pick(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """Return the chosen value of each column, the largest if several are chosen. values, chosen: [N, W]."""
    lowest = -jnp.inf if values.dtype == jnp.float32 else 0
    return jnp.where(chosen, values, jnp.asarray(lowest, values.dtype)).max(0)
