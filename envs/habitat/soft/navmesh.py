"""The navigation mesh: random points, steps that collide, and exact shortest paths.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from relic_jax.envs.habitat.soft.house import FreeSpace, House
from relic_jax.envs.habitat.soft.islands import Level, levels_of


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


def _point(flat: np.ndarray, height: float) -> np.ndarray:
    return np.array([flat[0], height, flat[1]], np.float32)


class PathFinder:
    """The navigation mesh of one scene."""

    def __init__(self) -> None:
        self._levels: list[Level] = []
        self._random = np.random.RandomState(0)
        self._paths: dict[tuple[int, bytes], np.ndarray] = {}

    @property
    def is_loaded(self) -> bool:
        """Whether a navigation mesh is available."""
        return bool(self._levels)

    def build(self, house: House, radius: float) -> bool:
        """Build the navigation mesh. Return False if the agent fits nowhere."""
        space = FreeSpace(house, radius)
        self._paths = {}
        grid = np.stack(np.meshgrid(*(np.linspace(0, s, 40) for s in house.size)), -1).reshape(-1, 2)
        self._levels = levels_of(house, space) if space.is_free(grid).any() else []
        return self.is_loaded

    def seed(self, seed: int) -> None:
        """Seed the random navigable points."""
        self._random = np.random.RandomState(seed)

    def _loaded(self) -> list[Level]:
        if not self._levels:
            raise RuntimeError("no navmesh is loaded")
        return self._levels

    def _level_at(self, point: Any) -> Level:
        """Return the level that is nearest to a point in height."""
        height = float(np.asarray(point)[1])
        return min(self._loaded(), key=lambda level: abs(level.height - height))

    def _level_of(self, island: int) -> Level:
        """Return the level of an island."""
        return [level for level in self._loaded() if level.first <= island][-1]

    @property
    def num_islands(self) -> int:
        """Number of islands."""
        return sum(len(level.parts.areas) for level in self._loaded())

    def island_area(self, island_index: int = -1) -> float:
        """Return the area of an island, in square meters; -1: of all of them."""
        areas = np.concatenate([level.parts.areas for level in self._loaded()])
        return float(areas.sum() if island_index < 0 else areas[island_index])

    def get_island(self, point: Any) -> int:
        """Return the index of the island of the nearest navigable point."""
        level = self._level_at(point)
        return level.first + level.parts.of(level.space.snap(_flat(point)))

    def is_navigable(self, pt: Any, max_y_delta: float = 0.5) -> bool:
        """Return whether the agent fits at a point."""
        point, level = np.asarray(pt, np.float64), self._level_at(pt)
        is_level = abs(point[1] - level.height) <= max_y_delta
        return bool(is_level and level.space.is_free(_flat(point)[None])[0])

    def get_random_navigable_point(self, max_tries: int = 10, island_index: int = -1) -> np.ndarray:
        """Return a uniformly random navigable point, or NaN if `max_tries` draws found none.

        Args:
            max_tries: Maximum number of draws.
            island_index: Index of an island, or -1 for all of them.
        """
        levels = self._loaded() if island_index < 0 else [self._level_of(island_index)]
        areas = np.array([level.parts.areas.sum() for level in levels])
        chosen = 0 if len(levels) == 1 else int(self._random.choice(len(levels), p=areas / areas.sum()))
        level = levels[chosen]
        for _ in range(max_tries):
            point = self._random.uniform(0, 1, 2) * level.space.size
            is_free = level.space.is_free(point[None])[0]
            if is_free and (island_index < 0 or level.first + level.parts.of(point) == island_index):
                return _point(point, level.height)
        return np.full(3, np.nan, np.float32)

    def snap_point(self, point: Any, island_index: int = -1) -> np.ndarray:
        """Return the nearest navigable point of an island (-1: of all), or NaN if there is none."""
        if island_index < 0:
            level = self._level_at(point)
            return _point(level.space.snap(_flat(point)), level.height)
        level = self._level_of(island_index)
        part = island_index - level.first
        return _point(level.space.snap(_flat(point), lambda at: level.parts.of(at) == part), level.height)

    def try_step(self, start: Any, end: Any) -> np.ndarray:
        """Return the end of a step that slides along obstacles."""
        level = self._level_at(start)
        return _point(level.space.move(_flat(start), _flat(end)), level.height)

    def try_step_no_sliding(self, start: Any, end: Any) -> np.ndarray:
        """Return the end of a step that stops at the first obstacle."""
        level = self._level_at(start)
        return _point(level.space.move(_flat(start), _flat(end), slide=False), level.height)

    def find_path(self, path: Any) -> bool:
        """Answer a `ShortestPath` or `MultiGoalShortestPath`. Return False if no end can be reached."""
        level = self._level_at(path.requested_start)
        is_multi_goal = isinstance(path, MultiGoalShortestPath)
        requested = list(path.requested_ends) if is_multi_goal else [path.requested_end]
        start, ends = _flat(path.requested_start), [_flat(end) for end in requested]
        lengths = [
            level.space.distance(start, at, self._paths_to(level, at)) if self._level_at(end) is level else math.inf
            for end, at in zip(requested, ends)  # noqa: B905 (Python 3.8)
        ]
        best = int(np.argmin(lengths)) if lengths else -1
        path.geodesic_distance = lengths[best] if lengths else math.inf
        exists, height = math.isfinite(path.geodesic_distance), level.height
        path.trace = lambda: [_point(at, height) for at in level.space.path(start, ends[best])] if exists else []
        if is_multi_goal:
            path.closest_end_point_index = best if exists else -1
        return exists

    def _paths_to(self, level: Level, end: np.ndarray) -> np.ndarray:
        """Return path lengths from all corners to an end, cached: tasks query the same ends at every step."""
        key = (level.first, end.tobytes())
        if key not in self._paths:
            if len(self._paths) > 256:
                self._paths.clear()
            self._paths[key] = level.space.paths_to(end)
        return self._paths[key]
