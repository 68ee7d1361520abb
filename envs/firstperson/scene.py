"""What can be drawn: vertical walls, solids standing in the room, floor and ceiling, and how Miniworld lights them.

World: y is up, the floor is the x–z plane, metres. A heading θ looks along (cos θ, −sin θ) in (x, z).
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

_LIGHT = np.array([1.0, 3.5, 1.0]) / np.linalg.norm([1.0, 3.5, 1.0])  # towards the light, in (x, y, z)


class SceneError(ValueError):
    """A world or a picture that cannot be; the text names the value and what is allowed."""


class ResolutionError(SceneError):
    """A picture that cannot be drawn."""


class RoomTooSmallError(SceneError):
    """A room that does not hold its objects and the agent."""


class UnreachableTargetError(SceneError):
    """No way from the agent to what it is to reach."""


class TooManyObjectsError(SceneError):
    """More objects than there are slots for them."""


@struct.dataclass
class Walls:
    """S vertical rectangles from the floor to the ceiling, seen from both sides.

    ends: float32 [S, 2, 2]; both ends of each, as (x, z). A wall whose ends coincide is not there.
    colour: float32 [S, 3]; RGB in [0, 1] before lighting.
    """

    ends: Array
    colour: Array


@struct.dataclass
class Solids:
    """N upright shapes. No two may overlap in plan, unless one is wholly above the eye and the other below it.

    centre: float32 [N, 2]; (x, z). yaw: float32 [N]; radians, turns boxes as a heading does.
    half: float32 [N, 2]; half the extent of a box along its own x and z; (radius, unused) of cylinders and spheres.
    bottom, top: float32 [N]; heights in metres. A sphere's centre is `bottom` + its radius. top ≤ bottom: not there.
    colour: float32 [N, 3]; RGB in [0, 1] before lighting.
    shape: int32 [N]; BOX, CYLINDER or SPHERE. shapes: the ones that occur, static: others cost nothing.
    identity: int32 [N]; object ids, filled in by the renderer.
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
    """Everything there is to see from inside.

    walls, solids: see there. backdrop: solids behind the walls that rise above them (only where there is no ceiling).
    floor, ceiling: float32 [3]; RGB before lighting. Where `open_sky` is set, `ceiling` is the colour of the sky.
    textured: draw floor tiles and wall boards, made by arithmetic, instead of flat colours.
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
    """Where one looks from.

    position: float32 [2]; (x, z). direction: float32 [2]; (cos θ, sin θ) of the heading.
    height: float32 []; metres above the floor.
    rise: float32 []; tangent of the elevation of the picture's centre. The picture plane stays vertical and is moved up
      or down (the shift of a view camera), so verticals stay vertical.
    """

    position: Array
    direction: Array
    height: Array | float = EYE_HEIGHT
    rise: Array | float = 0.0


def shade(normal: jax.Array) -> jax.Array:
    """Miniworld's light on a surface: min(1, 0.65 + 0.7·max(0, n·L)). normal: unit vectors [..., 3]. Returns [...]."""
    return jnp.minimum(1.0, 0.65 + 0.7 * jnp.maximum(0.0, normal @ jnp.asarray(_LIGHT, jnp.float32)))


def shade_upright(normal: jax.Array) -> jax.Array:
    """The same for vertical surfaces. normal: unit vectors in (x, z), float32 [..., 2]."""
    return jnp.minimum(1.0, 0.65 + 0.7 * jnp.maximum(0.0, normal @ jnp.asarray(_LIGHT[[0, 2]], jnp.float32)))


SHADE_UP = 1.0  # of surfaces that face upwards: 0.65 + 0.7·3.5/√14.25 is above 1
SHADE_DOWN = 0.65


def no_solids() -> Solids:
    """N = 0."""
    zero, pair = np.zeros(0, np.float32), np.zeros((0, 2), np.float32)
    return Solids(pair, zero, pair, zero, zero, np.zeros((0, 3), np.float32), np.zeros(0, np.int32), shapes=())


def cubes(centre: Array, yaw: Array, colour: Array, side: float = 0.8) -> Solids:
    """Miniworld's boxes: cubes on the floor. centre: float32 [N, 2]. yaw: float32 [N]. colour: float32 [N, 3]."""
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
    """The four walls of a room, float32 [4, 2, 2]: x = x0, x = x1, z = z0, z = z1."""
    a, b, c, d = (x0, z0), (x1, z0), (x1, z1), (x0, z1)
    return np.array([(a, d), (b, c), (a, b), (d, c)], np.float32)


def plain_walls(ends: Array, colour: tuple[float, float, float] = WHITE) -> Walls:
    """Walls of one colour. ends: float32 [S, 2, 2]."""
    return Walls(ends, np.tile(np.asarray(colour, np.float32), (ends.shape[0], 1)))
