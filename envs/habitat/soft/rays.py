"""Rays against the boxes of a house and its ceiling, with the names of habitat-sim.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from relic_jax.envs.habitat.soft.house import WALL_HEIGHT, Boxes


class Ray:
    """A ray."""

    def __init__(self, origin: Any, direction: Any) -> None:
        self.origin, self.direction = np.asarray(origin, np.float64), np.asarray(direction, np.float64)


class RayHitInfo(NamedTuple):
    """A hit.

    Attributes:
        point: Float64 [3].
        ray_distance: Its distance from the origin, in lengths of the ray's direction.
    """

    point: np.ndarray
    ray_distance: float


class RaycastResults(NamedTuple):
    """The hits of a ray, the nearest first."""

    hits: list[RayHitInfo]

    def has_hits(self) -> bool:
        """Return whether there are any hits."""
        return bool(self.hits)


def cast(ray: Ray, boxes: Boxes, size: tuple[float, float], max_distance: float) -> RaycastResults:
    """Return the hits of a ray with the boxes of a house of an (x, z) extent, its floor and its ceiling."""
    low = np.concatenate([boxes.low, [[0.0, 0.0, 0.0], [0.0, WALL_HEIGHT, 0.0]]])
    high = np.concatenate([boxes.high, [[size[0], 0.0, size[1]], [size[0], WALL_HEIGHT, size[1]]]])
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (low - ray.origin) / ray.direction, (high - ray.origin) / ray.direction
    inside = (ray.origin >= low) & (ray.origin <= high)
    parallel = ray.direction == 0
    near = np.where(parallel, np.where(inside, -np.inf, np.inf), np.minimum(a, b)).max(-1)
    far = np.where(parallel, np.where(inside, np.inf, -np.inf), np.maximum(a, b)).min(-1)
    distances = np.sort(near[(near <= far) & (near >= 0) & (near <= max_distance)])
    return RaycastResults([RayHitInfo(ray.origin + d * ray.direction, float(d)) for d in distances])
