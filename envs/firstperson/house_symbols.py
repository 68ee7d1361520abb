"""What an agent in a house perceives, as numbers instead of an image: objects in view, and free distances.

Everything is exact in the floor plan. A point is in view if it lies inside the horizontal field of view and no wall is
between it and the eye. Furniture and objects are lower than the eye and hide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.columns import in_view
from relic_jax.envs.firstperson.house_plan import CATEGORIES, CELL, OBJECT, House
from relic_jax.envs.firstperson.house_walk import SUCCESS_DISTANCE
from relic_jax.envs.firstperson.lens import Lens
from relic_jax.envs.firstperson.scene import Camera

RAYS = np.radians(np.arange(-165, 181, 15)).astype(np.float32)
"""Bearings of the free distances, all around from right to left. With 30° between them, most doors would be missed."""
FREE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 7.0)
"""Grid of the two-hot encoding of free distances, in meters; a step is 0.25 m."""
DISTANCES = (0.0, 1.0, 1.75, 2.25, 3.0, 5.0, 8.0)
"""The same for the distance of the target category; stopping within 2 m succeeds."""
BEARINGS = tuple(np.radians(np.arange(-45, 46, 15)))
"""The same for its bearing, in radians."""
DIRECTIONS = 12
"""Number of directions in the two-hot encoding of the heading."""
SHAPES = {
    **dict.fromkeys(("bearing", "distance", "in_reach", "in_view"), (CATEGORIES,)),
    "compass": (DIRECTIONS,),
    "free": (len(RAYS) * len(FREE),),
    "sighting": (len(BEARINGS) + len(DISTANCES),),
}
"""Shapes of the observation, float32.

in_view, in_reach, distance, bearing: whether an object of each category is in view, whether one is so near that a stop
is a success, and meters and radians (to the left) to the nearest one. sighting: bearing and distance of the target
category, zeros if it is not in view. free: meters to the next obstacle in the directions `RAYS`. compass: the heading.
The last three are two-hot encoded, see `two_hot`.
"""


class Sightings(NamedTuple):
    """The objects in view.

    Attributes:
        visible: Bool [N].
        distance: Float32 [N]; meters in the floor plan.
        bearing: Float32 [N]; radians to the left of the heading, −π … π.
    """

    visible: jax.Array
    distance: jax.Array
    bearing: jax.Array


def points_in_view(points: jax.Array, walls: jax.Array, camera: Camera, lens: Lens) -> jax.Array:
    """Return which points are in view, bool [...].

    Args:
        points: Float32 [..., 2]; (x, z).
        walls: Float32 [S, 2, 2]; both ends of each wall. Walls of length 0 hide nothing.
        camera: The agent's camera.
        lens: The lens of the camera, for its field of view.
    """
    forward, right = in_view(points, camera)
    inside = (forward > 0) & (jnp.abs(right) <= lens.edge * forward)
    x, z = jnp.moveaxis(points - camera.position, -1, 0)
    # Walls are the first axis: on CPU, a reduction over the last one takes twice as long.
    ends = (walls - camera.position).reshape(-1, 4, *(1,) * x.ndim)
    x0, z0, x1, z1 = jnp.moveaxis(ends, 1, 0)
    # The wall's line separates the eye and the point, and the line of sight separates the ends of the wall.
    ends_apart = (x * z0 - z * x0 > 0) != (x * z1 - z * x1 > 0)
    behind = ((x1 - x0) * (z - z0) - (z1 - z0) * (x - x0) > 0) != ((z1 - z0) * x0 - (x1 - x0) * z0 > 0)
    return inside & ~(ends_apart & behind).any(0)


def sightings(house: House, camera: Camera, lens: Lens) -> Sightings:
    """Return which objects are in view, and where they are. An object is in view if its center is."""
    forward, right = in_view(house.place, camera)
    visible = house.present & points_in_view(house.place, house.walls, camera, lens)
    return Sightings(visible, jnp.hypot(forward, right), jnp.arctan2(-right, forward))


def nearest_of_categories(house: House, seen: Sightings) -> dict[str, jax.Array]:
    """Return the observation of the nearest object in view of each of the 20 categories, zeros if there is none.

    Returns:
        in_view, in_reach (within the distance of a successful stop), distance and bearing, float32 [20] each.
    """
    count = house.categories.shape[0]
    distance, bearing = (x.reshape(count, -1) for x in (seen.distance, seen.bearing))
    reach = jnp.where(seen.visible.reshape(count, -1), distance, jnp.inf)
    nearest = reach.argmin(1)[:, None]
    visible = jnp.isfinite(reach).any(1)
    slots = house.categories == jnp.arange(CATEGORIES)[:, None]  # [20, C]

    def by_category(values: jax.Array) -> jax.Array:
        return jnp.where(slots & visible, values, 0.0).sum(1)

    return {
        "bearing": by_category(jnp.take_along_axis(bearing, nearest, 1)[:, 0]),
        "distance": by_category(jnp.take_along_axis(distance, nearest, 1)[:, 0]),
        "in_reach": by_category((reach.min(1) <= SUCCESS_DISTANCE).astype(jnp.float32)),
        "in_view": by_category(jnp.ones(count)),
    }


def two_hot(x: jax.Array, grid: Sequence[float]) -> jax.Array:
    """Return the two-hot encoding of numbers: the weights of the two nearest grid points in a linear interpolation.

    Networks learn faster from it than from a plain number (Gorishniy et al. 2022, arXiv 2203.05556).

    Args:
        x: Float32 [...]; clipped to the ends of the grid.
        grid: N increasing numbers.

    Returns:
        Float32 [..., N]; at most two neighboring weights are not 0, and all sum to 1.
    """
    points = np.asarray(grid, np.float32)
    steps = np.diff(points)
    share = jnp.clip((x[..., None] - points[:-1]) / steps, 0.0, 1.0)  # of each interval that lies below x
    below = jnp.concatenate([jnp.ones_like(share[..., :1]), share], axis=-1)
    above = jnp.concatenate([share, jnp.zeros_like(share[..., :1])], axis=-1)
    return below - above


def sighting(observation: dict[str, jax.Array], target: jax.Array) -> jax.Array:
    """Return bearing and distance of the target category, two-hot, float32 [..., 14]; zeros if it is not in view.

    Args:
        observation: See `nearest_of_categories`, with leading axes [...].
        target: Float32 [..., 20]; one-hot.
    """
    seen, bearing, distance = ((observation[name] * target).sum(-1) for name in ("in_view", "bearing", "distance"))
    return seen[..., None] * jnp.concatenate([two_hot(bearing, BEARINGS), two_hot(distance, DISTANCES)], -1)


def compass(angle: jax.Array) -> jax.Array:
    """Return the two-hot encoding of a heading in radians, float32 [..., 12]: `DIRECTIONS` headings from 0 on."""
    turn = 2 * np.pi / DIRECTIONS
    weights = two_hot(jnp.mod(angle, 2 * np.pi) / turn, range(DIRECTIONS + 1))
    return weights[..., :-1].at[..., 0].add(weights[..., -1])


def free_distances(house: House, camera: Camera) -> jax.Array:
    """Return the meters from the agent's center to the nearest wall, piece of furniture or object, float32 [24].

    The directions are `RAYS`. An object fills the square of cells that it occupies.
    """
    cos, sin = camera.direction
    turned = jnp.arctan2(sin, cos) + RAYS
    rays = jnp.stack([jnp.cos(turned), -jnp.sin(turned)], -1)[:, None]  # [R, 1, 2]
    start, along = house.walls[:, 0] - camera.position, house.walls[:, 1] - house.walls[:, 0]
    across = _cross(rays, along)
    meters = _cross(start, along) / jnp.where(across == 0, 1.0, across)
    meets = (_cross(rays, start) > 0) != (_cross(rays, start + along) > 0)
    to_wall = jnp.where(meets & (meters > 0), meters, jnp.inf).min(1)
    half = jnp.concatenate([house.furniture[:, 2:4], jnp.full(house.place.shape, OBJECT * CELL / 2)])
    aside = jnp.concatenate([house.furniture[:, :2], house.place]) - camera.position
    there = jnp.concatenate([house.furniture[:, 4] > 0, house.present])
    slope = 1.0 / jnp.where(jnp.abs(rays) < 1e-6, 1e-6, rays)
    ends = jnp.stack([(aside - half) * slope, (aside + half) * slope])  # [2, R, N, 2]
    enters, leaves = ends.min(0).max(-1), ends.max(0).min(-1)
    to_solid = jnp.where(there & (enters < leaves) & (enters > 0), enters, jnp.inf).min(1)
    return jnp.minimum(to_wall, to_solid)


def _cross(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the cross product of vectors [..., 2] in the plane."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
