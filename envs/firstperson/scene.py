"""Scenes that can be rendered: vertical walls, upright solids, floor and ceiling, with the lighting of Miniworld.

In world coordinates, in meters, y is up and the floor is the x–z plane. The heading θ points along (cos θ, −sin θ) in
(x, z).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray

WALL_HEIGHT = 2.74
EYE_HEIGHT = 1.5

# Shapes of solids.
BOX, CYLINDER, SPHERE = 0, 1, 2

# Base colours, RGB in [0, 1].
WHITE = (1.0, 1.0, 1.0)
SKY = (0.25, 0.82, 1.0)
COLOURS = {
    "blue": (0.0, 0.0, 1.0),
    "green": (0.0, 1.0, 0.0),
    "grey": (0.39, 0.39, 0.39),
    "purple": (0.44, 0.15, 0.76),
    "red": (1.0, 0.0, 0.0),
    "yellow": (1.0, 1.0, 0.0),
}

_LIGHT = np.array([1.0, 3.5, 1.0]) / np.linalg.norm([1.0, 3.5, 1.0])  # direction to the light, (x, y, z)


class SceneError(ValueError):
    """A world or an image is not possible. The message names the value and what is allowed."""


class ResolutionError(SceneError):
    """An image cannot be rendered."""


class RoomTooSmallError(SceneError):
    """A room is too small for its objects and the agent."""


class UnreachableTargetError(SceneError):
    """There is no path from the agent to its target."""


class TooManyObjectsError(SceneError):
    """There are more objects than slots."""


@struct.dataclass
class Walls:
    """S vertical rectangles from the floor to the ceiling, visible from both sides.

    Attributes:
        ends: Float32 [S, 2, 2]; both ends of each wall, (x, z). Walls of length 0 are not drawn.
        colour: Float32 [S, 3]; RGB in [0, 1] before lighting.
    """

    ends: Array
    colour: Array


@struct.dataclass
class Solids:
    """N upright solids. Two of them can overlap in the floor plan only if one is above the eye and the other below.

    Attributes:
        centre: Float32 [N, 2]; (x, z).
        yaw: Float32 [N]; heading of boxes, in radians.
        half: Float32 [N, 2]; half extents of a box along its axes; (radius, unused) for cylinders and spheres.
        bottom: Float32 [N]; height in meters.
        top: Float32 [N]; height in meters. The center of a sphere is `bottom` + radius. Solids with top ≤ bottom are
            not drawn.
        colour: Float32 [N, 3]; RGB in [0, 1] before lighting.
        shape: Int32 [N]; BOX, CYLINDER or SPHERE.
        identity: Int32 [N]; object ids, set by the renderer.
        shapes: Shapes that occur; static, so that other shapes cost nothing.
    """

    centre: Array
    yaw: Array
    half: Array
    bottom: Array
    top: Array
    colour: Array
    shape: Array
    identity: Array | None = None
    shapes: tuple[int, ...] = struct.field(pytree_node=False, default=(BOX,))


@struct.dataclass
class Scene:
    """Everything that a camera can see.

    Attributes:
        walls: The walls.
        solids: The solids.
        floor: Float32 [3]; RGB before lighting.
        ceiling: Float32 [3]; RGB before lighting, or the color of the sky.
        backdrop: Solids that rise above the walls from behind. Requires `open_sky`.
        open_sky: Whether there is a sky instead of a ceiling.
        textured: Draw procedural floor tiles and wall boards instead of flat colors.
    """

    walls: Walls
    solids: Solids
    floor: Array
    ceiling: Array
    backdrop: Solids | None = None
    open_sky: bool = struct.field(pytree_node=False, default=False)
    textured: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Camera:
    """A camera pose.

    Attributes:
        position: Float32 [2]; (x, z).
        direction: Float32 [2]; (cos θ, sin θ) of the heading.
        height: Float32 []; meters above the floor.
        rise: Float32 []; tangent of the elevation of the image's center. The image plane stays vertical and is shifted
            up or down, so verticals stay vertical.
    """

    position: Array
    direction: Array
    height: Array | float = EYE_HEIGHT
    rise: Array | float = 0.0


def shade(normal: jax.Array) -> jax.Array:
    """Return Miniworld's brightness of surfaces, min(1, 0.65 + 0.7·max(0, n·L)), [...], for unit normals [..., 3]."""
    return jnp.minimum(1.0, 0.65 + 0.7 * jnp.maximum(0.0, normal @ jnp.asarray(_LIGHT, jnp.float32)))


def shade_upright(normal: jax.Array) -> jax.Array:
    """Return the brightness of vertical surfaces, [...], for unit normals (x, z), [..., 2]."""
    return jnp.minimum(1.0, 0.65 + 0.7 * jnp.maximum(0.0, normal @ jnp.asarray(_LIGHT[[0, 2]], jnp.float32)))


SHADE_UP = 1.0  # brightness of surfaces that face up: 0.65 + 0.7·3.5/√14.25 exceeds 1
SHADE_DOWN = 0.65


def cubes(centre: Array, yaw: Array, colour: Array, side: float = 0.8) -> Solids:
    """Return Miniworld's boxes: cubes on the floor.

    Args:
        centre: Float32 [N, 2]; (x, z).
        yaw: Float32 [N]; heading in radians.
        colour: Float32 [N, 3]; RGB in [0, 1].
        side: Meters.
    """
    count = centre.shape[0]
    return Solids(
        centre=centre,
        yaw=yaw,
        half=np.full((count, 2), side / 2, np.float32),
        bottom=np.zeros(count, np.float32),
        top=np.full(count, side, np.float32),
        colour=colour,
        shape=np.full(count, BOX, np.int32),
    )


def rectangle_walls(x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
    """Return the four walls of a room, float32 [4, 2, 2]: x = x0, x = x1, z = z0, z = z1."""
    a, b, c, d = (x0, z0), (x1, z0), (x1, z1), (x0, z1)
    return np.array([(a, d), (b, c), (a, b), (d, c)], np.float32)


def plain_walls(ends: Array, colour: tuple[float, float, float] = WHITE) -> Walls:
    """Return walls of one color with ends [S, 2, 2]."""
    return Walls(ends, np.tile(np.asarray(colour, np.float32), (ends.shape[0], 1)))
