"""Renders a scene in time proportional to columns × surfaces + pixels × layers.

The image plane is vertical, so a wall or a solid covers one interval of rows in a column of pixels. The ends of the
interval follow from the distance along the column's ray in the floor plan; floor, ceiling and the tops of solids fill
the rest. The column phase (`columns`, `solids`) finds the nearest wall and the nearest few solids of each column. The
pixel phase, here, only compares the slope of each row with the ends of the intervals, and paints from far to near. An
optimization barrier between the two phases keeps the compiler from repeating a column's work in each of its pixels.

Distances are inverted: along a column with u = right / forward, the inverse forward distance of a plane is linear in
u, and a height y appears at the slope (y − eye) · inverse distance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from relic_jax.envs.firstperson.columns import DARKER, Columns, nearest_wall, separately
from relic_jax.envs.firstperson.lens import SAMPLES, Lens
from relic_jax.envs.firstperson.paint import (
    BACKGROUND,
    COLOUR,
    DEPTH,
    WIDE_BYTES,
    WIDE_COLOUR,
    Paint,
    Surface,
    to_bytes,
)
from relic_jax.envs.firstperson.scene import SHADE_DOWN, SHADE_UP, WALL_HEIGHT, Camera, Scene
from relic_jax.envs.firstperson.solids import nearest_first, nearest_in_view, solid_columns

TILE = 1.0  # meters; width of the floor's tiles


class View(NamedTuple):
    """An image and the objects in it.

    Attributes:
        image: Uint8 [H, W, 3].
        objects: Int32 [H, W]; object ids at pixel centers: BACKGROUND, WALL, or k + FIRST_SOLID for solid k.
    """

    image: jax.Array
    objects: jax.Array


def render(scene: Scene, camera: Camera, lens: Lens) -> jax.Array:
    """Return the image, uint8 [H, W, 3]. Batch with vmap."""
    if lens.samples == 1:
        return to_bytes(_paint(scene, camera, lens, *_slopes(camera, lens, 1), COLOUR)[0])[..., :3]

    def add(total: jax.Array, slopes: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _paint(scene, camera, lens, *slopes, WIDE_COLOUR)[0], None

    u, v = (
        jnp.stack(x) for x in zip(*(_slopes(camera, lens, lens.samples, k) for k in range(lens.samples)), strict=True)
    )
    total, _ = jax.lax.scan(add, jnp.zeros((lens.height, lens.width), jnp.uint32), (u, v))
    mean = [(((total >> shift) & 1023) + lens.samples // 2) // lens.samples << place for shift, place in WIDE_BYTES]
    return to_bytes(separately(mean[0] | mean[1] | mean[2]))[..., :3]


def render_objects(scene: Scene, camera: Camera, lens: Lens) -> View:
    """Return the image and the object in each pixel. With one sample per pixel, the objects cost nothing."""
    packed = _paint(scene, camera, lens, *_slopes(camera, lens, 1), COLOUR)[0]
    image = to_bytes(packed)[..., :3] if lens.samples == 1 else render(scene, camera, lens)
    return View(image, (packed >> 24).astype(jnp.int32))


def render_depth(scene: Scene, camera: Camera, lens: Lens) -> jax.Array:
    """Return forward distances in meters at pixel centers, float32 [H, W]; infinite in the sky.

    The distance of a sphere is that of its nearest point in the column.
    """
    u, v = _slopes(camera, lens, 1)
    constant, slope = _paint(scene, camera, lens, u, v, DEPTH)
    inverse = constant + slope * v[:, None]
    return jnp.where(inverse > 0, 1.0 / jnp.where(inverse > 0, inverse, 1.0), jnp.inf)


def _slopes(camera: Camera, lens: Lens, samples: int, index: int = 0) -> tuple[jax.Array, jax.Array]:
    """Return u of the columns, float32 [W], and v of the rows, float32 [H], of one of `samples` samples."""
    right, down = SAMPLES[samples][index]
    return jnp.asarray(lens.columns(right)), jnp.asarray(lens.rows(down)) + camera.rise


def _paint(scene: Scene, camera: Camera, lens: Lens, u: jax.Array, v: jax.Array, paint: Paint) -> tuple[jax.Array, ...]:
    """Return the payloads at one sample of each pixel, [H, W] each. u: float32 [W]. v: float32 [H]."""
    wall = separately(nearest_wall(scene.walls, camera, u, paint, scene.textured))
    in_view = separately(nearest_in_view(scene.solids, camera, lens))
    solids = separately(solid_columns(in_view, camera, u, wall.near, paint))
    solids = separately(nearest_first(solids, lens.layers))
    behind = None
    if scene.backdrop is not None:
        behind = separately(solid_columns(scene.backdrop, camera, u, jnp.zeros_like(u), paint))
    v = v[:, None]
    floor, ceiling = _level_payloads(scene, camera, u, v, paint)
    image = tuple(jnp.where(v < 0, low, high) for low, high in zip(floor, ceiling, strict=True))
    if behind is not None:
        image = _over(image, behind, v)
    image = _over(image, jax.tree.map(lambda x: x[None], wall), v)
    image = _over(image, solids, v)
    return tuple(jnp.broadcast_to(p, (lens.height, lens.width)) for p in image)


def _over(image: tuple[jax.Array, ...], layers: Columns, v: jax.Array) -> tuple[jax.Array, ...]:
    """Paint layers, [L, W], nearest first, over a image. v: float32 [H, 1]."""
    for index in reversed(range(layers.low.shape[0])):
        layer = jax.tree.map(lambda x, i=index: x[i], layers)
        covered, below = (v >= layer.low) & (v < layer.high), v < layer.mid
        image = tuple(
            jnp.where(covered, jnp.where(below, lower, upper), old)
            for old, lower, upper in zip(image, layer.lower, layer.upper, strict=True)
        )
    return image


def _level_payloads(
    scene: Scene, camera: Camera, u: jax.Array, v: jax.Array, paint: Paint
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Return the payloads of the floor and of the ceiling or sky, [] each, or [H, W] with tiles. v: [H, 1]."""
    colour, eye = jnp.asarray(scene.floor), jnp.asarray(camera.height)
    if scene.textured:
        cos, sin = camera.direction
        distance = -eye / jnp.minimum(v, -1e-6)
        x, z = (camera.position[0] + distance * (cos + u * sin), camera.position[1] + distance * (u * cos - sin))
        odd = (jnp.floor(x / TILE) + jnp.floor(z / TILE)).astype(jnp.int32) & 1
        colour = colour * jnp.where(odd, DARKER, 1.0)[..., None]
    floor = paint.payload(Surface(colour, SHADE_UP, BACKGROUND, -eye))
    above, light = (math.inf, 1.0) if scene.open_sky else (WALL_HEIGHT - eye, SHADE_DOWN)
    return floor, paint.payload(Surface(jnp.asarray(scene.ceiling), light, BACKGROUND, above))
