"""The navigation mesh: random points, steps that collide, and exact shortest paths.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from relic_jax.envs.habitat.soft.house import FreeSpace, House


class NavMeshSettings:
    """The size of the agent that a navigation mesh is built for."""

    def __init__(self) -> None:
        self.set_defaults()

    def set_defaults(self) -> None:
        """Set the size of a small robot."""
        self.agent_height, self.agent_radius = 1.5, 0.1


class ShortestPath:
    """A query for a shortest path and its answer."""

    def __init__(self) -> None:
        self.requested_start: Any = np.zeros(3)
        self.requested_end: Any = np.zeros(3)
        self.geodesic_distance = math.inf
        self.trace: Callable[[], list[np.ndarray]] = list

    @property
    def points(self) -> list[np.ndarray]:
        """The points of the path. They are traced on first use: most callers need only the length."""
        return self.trace()


class MultiGoalShortestPath(ShortestPath):
    """A query for the shortest path to the nearest of several ends, and its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.requested_ends: Any = []
        self.closest_end_point_index = -1


def _flat(point: Any) -> np.ndarray:
    """Return (x, z) of a point."""
    return np.asarray(point, np.float64)[[0, 2]]


def _point(flat: np.ndarray) -> np.ndarray:
    return np.array([flat[0], 0.0, flat[1]], np.float32)


class PathFinder:
    """The navigation mesh of one scene."""

    def __init__(self) -> None:
        self.space: FreeSpace | None = None
        self._random = np.random.RandomState(0)
        self._paths: dict[bytes, np.ndarray] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether a navigation mesh is available."""
        return self.space is not None

    def build(self, house: House, radius: float) -> bool:
        """Build the navigation mesh. Return False if the agent fits nowhere."""
        space = FreeSpace(house, radius)
        self._paths = {}
        grid = np.stack(np.meshgrid(*(np.linspace(0, s, 40) for s in house.size)), -1).reshape(-1, 2)
        self.space = space if space.is_free(grid).any() else None
        return self.is_loaded

    def seed(self, seed: int) -> None:
        """Seed the random navigable points."""
        self._random = np.random.RandomState(seed)

    def _loaded(self) -> FreeSpace:
        if self.space is None:
            raise RuntimeError("no navmesh is loaded")
        return self.space

    def is_navigable(self, pt: Any, max_y_delta: float = 0.5) -> bool:
        """Return whether the agent fits at a point."""
        point = np.asarray(pt, np.float64)
        return bool(abs(point[1]) <= max_y_delta and self._loaded().is_free(_flat(point)[None])[0])

    def get_random_navigable_point(self, max_tries: int = 10, island_index: int = -1) -> np.ndarray:
        """Return a uniformly random navigable point, or NaN if `max_tries` draws found none."""
        space = self._loaded()
        for _ in range(max_tries):
            point = self._random.uniform(0, 1, 2) * space.size
            if space.is_free(point[None])[0]:
                return _point(point)
        return np.full(3, np.nan, np.float32)

    def snap_point(self, point: Any, island_index: int = -1) -> np.ndarray:
        """Return the nearest navigable point, or NaN if there is none."""
        return _point(self._loaded().snap(_flat(point)))

    def try_step(self, start: Any, end: Any) -> np.ndarray:
        """Return the end of a step that slides along obstacles."""
        return _point(self._loaded().move(_flat(start), _flat(end)))

    def try_step_no_sliding(self, start: Any, end: Any) -> np.ndarray:
        """Return the end of a step that stops at the first obstacle."""
        return _point(self._loaded().move(_flat(start), _flat(end), slide=False))

    def find_path(self, path: Any) -> bool:
        """Answer a `ShortestPath` or `MultiGoalShortestPath`. Return False if no end can be reached."""
        space = self._loaded()
        is_multi_goal = isinstance(path, MultiGoalShortestPath)
        ends = [_flat(end) for end in (path.requested_ends if is_multi_goal else [path.requested_end])]
        start = _flat(path.requested_start)
        lengths = [space.distance(start, end, self._paths_to(end)) for end in ends]
        best = int(np.argmin(lengths)) if lengths else -1
        path.geodesic_distance = lengths[best] if lengths else math.inf
        exists = math.isfinite(path.geodesic_distance)
        path.trace = lambda: [_point(point) for point in space.path(start, ends[best])] if exists else []
        if is_multi_goal:
            path.closest_end_point_index = best if exists else -1
        return exists

    def _paths_to(self, end: np.ndarray) -> np.ndarray:
        """Return path lengths from all corners to an end, cached: tasks query the same ends at every step."""
        key = end.tobytes()
        if key not in self._paths:
            if len(self._paths) > 256:
                self._paths.clear()
            self._paths[key] = self._loaded().paths_to(end)
        return self._paths[key]
