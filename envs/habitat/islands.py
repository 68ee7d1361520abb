"""Choose the island of a navigation mesh on which episodes take place.

A navigation mesh covers every surface on which an agent could stand, including roofs, terraces and tables. Its
connected parts are its islands. As in the object navigation datasets of habitat-lab, episodes use the largest island
that is indoors. A point is indoors if there is a ceiling 1.5 to 5 m above it. Stairs connect the floors of a house to
one island. Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

LOWEST, HIGHEST = 1.5, 5.0  # meters; heights of ceilings above the floor
SAMPLES = 32  # points of an island that are tested
LEAST = 1.0  # square meters; smaller islands, such as tables, are ignored
START = 0.2  # meters above the navmesh at which rays start: its points can lie below the floor


class Island(NamedTuple):
    """A connected part of a navigation mesh.

    Attributes:
        number: Its index in the navigation mesh.
        area: Square meters.
        low: Lowest y of its points.
        high: Highest y of its points.
        indoors: Share of its points under a ceiling.
    """

    number: int
    area: float
    low: float
    high: float
    indoors: float


def survey(simulator: Any, module: Any) -> list[Island]:
    """Return the islands of the loaded scene, the largest first. Seeds the simulator's random points.

    Ceilings are found with rays. Without physics, habitat-sim cannot cast rays. In that case, an island above a point,
    such as a roof or another floor, counts as its ceiling.
    """
    finder = simulator.pathfinder
    finder.seed(0)
    areas = {index: float(finder.island_area(index)) for index in range(finder.num_islands)}
    order = sorted(areas, key=lambda index: -areas[index])
    kept = [index for index in order if areas[index] >= LEAST] or order[:1]
    points = {index: _points(finder, index) for index in kept}
    with_points = [index for index in kept if len(points[index])]
    has_rays = any(_heights(simulator, module, points[index][0], -1.0) for index in with_points[:1])
    islands = []
    for index in with_points:
        if has_rays:
            covered = [any(_is_ceiling(h) for h in _heights(simulator, module, p, 1.0)) for p in points[index]]
        else:
            covered = [any(_is_ceiling(h) for h in _above(finder, with_points, p)) for p in points[index]]
        heights = points[index][:, 1]
        extent = float(heights.min()), float(heights.max())
        islands.append(Island(index, areas[index], *extent, float(np.mean(covered))))
    return islands


def choose(islands: list[Island]) -> Island | None:
    """Return the largest island that is mostly indoors, else the largest one. None if there are no islands."""
    return max(islands, key=lambda island: (island.indoors > 0.5, island.area), default=None)


def _points(finder: Any, island: int) -> np.ndarray:
    """Return random points of an island, float32 [n, 3]."""
    drawn = [finder.get_random_navigable_point(max_tries=100, island_index=island) for _ in range(SAMPLES)]
    points = np.array([[point[0], point[1], point[2]] for point in drawn], np.float32)
    return points[np.isfinite(points).all(-1)]


def _is_ceiling(height: float) -> bool:
    return LOWEST <= height <= HIGHEST


def _heights(simulator: Any, module: Any, point: np.ndarray, direction: float) -> list[float]:
    """Return the heights, relative to a point, at which a ray from just above it upwards (1) or downwards (−1) hits."""
    origin = point + np.array([0.0, START, 0.0], np.float32)
    ray = module.geo.Ray(origin, np.array([0.0, direction, 0.0], np.float32))
    hits = simulator.cast_ray(ray, max_distance=HIGHEST).hits
    return [START + direction * float(hit.ray_distance) for hit in hits]


def _above(finder: Any, islands: Iterable[int], point: np.ndarray) -> list[float]:
    """Return the heights of the islands above a point."""
    heights = []
    for index in islands:
        near = finder.snap_point(point + np.array([0.0, (LOWEST + HIGHEST) / 2, 0.0], np.float32), island_index=index)
        if np.hypot(near[0] - point[0], near[2] - point[2]) < START:  # False for NaN
            heights.append(float(near[1] - point[1]))
    return heights
