"""Houses of axis-aligned boxes: layout, collision and exact shortest paths.

The floor is the plane y = 0 (habitat's axes: y is up, −z is forward at heading 0). The free space of an agent is the
rectangle of the house without the boxes, each inflated by the agent's radius with square corners. Shortest paths bend
only at corners of inflated boxes, so a visibility graph over these corners gives exact shortest paths.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WALL_HEIGHT, WALL, DOOR = 2.5, 0.1, 1.1
MARGIN = 1e-4  # meters; overlaps below it count as touching, since positions of agents are rounded to float32


class Boxes(NamedTuple):
    """n boxes with corners `low` and `high`, float64 [n, 3], and `color`, uint8 [n, 3]."""

    low: np.ndarray
    high: np.ndarray
    color: np.ndarray


class House(NamedTuple):
    """A house.

    Attributes:
        size: (x, z) extents in meters, from 0.
        boxes: Walls and furniture.
        tables: Indices of the boxes that carry objects.
        roof: Whether there is a roof above the ceiling that an agent could walk on, as in scenes of habitat.
    """

    size: tuple[float, float]
    boxes: Boxes
    tables: tuple[int, ...]
    roof: bool = False


def make_house(seed: int) -> House:
    """Return a house of 2×2 or 2×3 rooms with walls, doors and tables. Equal seeds give equal houses."""
    rng = np.random.RandomState(seed)
    columns, rows = int(rng.randint(2, 4)), 2
    xs = np.concatenate([[0.0], np.cumsum(rng.uniform(3.0, 4.2, columns))])
    zs = np.concatenate([[0.0], np.cumsum(rng.uniform(3.0, 4.2, rows))])
    walls = _outer_walls(xs[-1], zs[-1])
    open_doors = _doors(rng, columns, rows)
    for i in range(1, columns):
        for j in range(rows):
            walls += _wall(rng, xs[i], zs[j], zs[j + 1], ((i - 1, j), (i, j)) in open_doors, vertical=True)
    for j in range(1, rows):
        for i in range(columns):
            walls += _wall(rng, zs[j], xs[i], xs[i + 1], ((i, j - 1), (i, j)) in open_doors, vertical=False)
    tables = [_table(rng, xs[i], zs[j], xs[i + 1], zs[j + 1]) for i in range(columns) for j in range(rows)]
    boxes = np.array(walls + tables)
    colors = rng.randint(60, 220, (len(boxes), 3)).astype(np.uint8)
    first = len(walls)
    house = Boxes(boxes[:, :3], boxes[:, 3:], colors)
    return House((float(xs[-1]), float(zs[-1])), house, tuple(range(first, len(boxes))))


def _outer_walls(x: float, z: float) -> list[list[float]]:
    h, w = WALL_HEIGHT, WALL
    return [
        [-w, 0.0, -w, 0.0, h, z + w],
        [x, 0.0, -w, x + w, h, z + w],
        [-w, 0.0, -w, x + w, h, 0.0],
        [-w, 0.0, z, x + w, h, z + w],
    ]


def _doors(rng: np.random.RandomState, columns: int, rows: int) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the pairs of rooms joined by a door: a random spanning tree, and further doors with probability 0.3."""
    pairs = [((i, j), (i + 1, j)) for i in range(columns - 1) for j in range(rows)]
    pairs += [((i, j), (i, j + 1)) for i in range(columns) for j in range(rows - 1)]
    part = {(i, j): (i, j) for i in range(columns) for j in range(rows)}
    chosen = set()
    for index in rng.permutation(len(pairs)):
        a, b = pairs[index]
        if part[a] != part[b]:
            old, new = part[a], part[b]
            part = {room: new if p == old else p for room, p in part.items()}
            chosen.add((a, b))
        elif rng.uniform() < 0.3:
            chosen.add((a, b))
    return chosen


def _wall(
    rng: np.random.RandomState, at: float, start: float, stop: float, door: bool, vertical: bool
) -> list[list[float]]:
    """Return a wall along z at x = `at` (vertical) or along x at z = `at`; two parts if it has a door."""
    middle = rng.uniform(start + 0.9, stop - 0.9)
    parts = [(start, middle - DOOR / 2), (middle + DOOR / 2, stop)] if door else [(start, stop)]
    walls = []
    for a, b in parts:
        low, high = (at - WALL / 2, at + WALL / 2), (a, b)
        x, z = (low, high) if vertical else (high, low)
        walls.append([x[0], 0.0, z[0], x[1], WALL_HEIGHT, z[1]])
    return walls


def _table(rng: np.random.RandomState, x0: float, z0: float, x1: float, z1: float) -> list[float]:
    """Return a table in the inner part of a room, which leaves a way around it."""
    half = rng.uniform(0.25, 0.4, 2)
    x = rng.uniform(x0 + 1.2, x1 - 1.2) if x1 - x0 > 2.4 else (x0 + x1) / 2
    z = rng.uniform(z0 + 1.2, z1 - 1.2) if z1 - z0 > 2.4 else (z0 + z1) / 2
    return [x - half[0], 0.0, z - half[1], x + half[0], rng.uniform(0.4, 0.8), z + half[1]]


def load_scene(scene_id: str) -> House:
    """Return the house `house-SEED`, or the one in a JSON file.

    The file holds {"size": [x, z], "boxes": [[x0, y0, z0, x1, y1, z1, r, g, b], …], "tables": [i, …], "roof": bool}.

    Raises:
        FileNotFoundError: `scene_id` is neither `house-SEED` nor a file.
    """
    kind, _, seed = scene_id.partition("-")
    if kind == "house" and seed.isdigit():
        return make_house(int(seed))
    if not os.path.isfile(scene_id):
        raise FileNotFoundError(f"scene {scene_id!r} is neither house-SEED nor a file")
    with open(scene_id, encoding="utf-8") as file:
        data = json.load(file)
    rows = np.array(data["boxes"], np.float64).reshape(-1, 9)
    boxes = Boxes(rows[:, :3], rows[:, 3:6], rows[:, 6:].astype(np.uint8))
    return House((data["size"][0], data["size"][1]), boxes, tuple(data.get("tables", ())), bool(data.get("roof")))


def scene_handle(scene_id: str) -> str:
    """Return a canonical name of a scene: house-7 for house-07, or the real path of a file."""
    kind, _, seed = scene_id.partition("-")
    return f"house-{int(seed)}" if kind == "house" and seed.isdigit() else os.path.realpath(scene_id)


class FreeSpace:
    """The free space of an agent of a given radius, and exact shortest paths in it. Points are (x, z), float64 [2]."""

    def __init__(self, house: House, radius: float) -> None:
        below = house.boxes.low[:, 1] < 1.0
        x, z = house.size
        outside = np.array([[-1, -1, 0, z + 1], [x, -1, x + 1, z + 1], [-1, -1, x + 1, 0], [-1, z, x + 1, z + 1]])
        self.low = np.concatenate([house.boxes.low[below][:, [0, 2]] - radius, outside[:, :2]])
        self.high = np.concatenate([house.boxes.high[below][:, [0, 2]] + radius, outside[:, 2:]])
        self.size = np.array(house.size)
        self.corners = self._free_corners()
        self.distances = self._all_pairs()

    def is_free(self, points: np.ndarray) -> np.ndarray:
        """Return whether points [n, 2] are free, bool [n]. The boundary is free."""
        inside = (points[:, None] > self.low + MARGIN) & (points[:, None] < self.high - MARGIN)
        within = (points >= 0).all(-1) & (points <= self.size).all(-1)
        return np.asarray(within & ~inside.all(-1).any(-1))

    def _free_corners(self) -> np.ndarray:
        x = np.stack([self.low[:, 0], self.low[:, 0], self.high[:, 0], self.high[:, 0]], 1)
        z = np.stack([self.low[:, 1], self.high[:, 1], self.low[:, 1], self.high[:, 1]], 1)
        corners = np.stack([x.ravel(), z.ravel()], 1)
        return corners[self.is_free(corners)]

    def _all_pairs(self) -> np.ndarray:
        """Return the lengths of shortest paths between corners, float64 [V, V]."""
        count = len(self.corners)
        distance = (
            np.stack([self._direct(corner, self.corners) for corner in self.corners]) if count else np.zeros((0, 0))
        )
        for k in range(count):
            distance = np.minimum(distance, distance[:, k, None] + distance[k])
        return distance

    def _direct(self, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the lengths of straight segments from one point to many, [n, 2]; infinite for blocked segments."""
        enter, leave, _ = self._crossings(start, ends)
        blocked = (np.maximum(enter, 0.0) < np.minimum(leave, 1.0)).any(-1)
        return np.where(blocked, np.inf, np.linalg.norm(ends - start, axis=-1))

    def _crossings(self, start: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Intersect the segments from `start` to `ends`, [n, 2], with the m boxes.

        Returns:
            Fractions (enter, leave) of the segment inside each box, [n, m] (enter > leave: no intersection), and the
            axis of the side where it enters, int [n, m].
        """
        step = ends[:, None] - start
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (self.low + MARGIN - start) / step, (self.high - MARGIN - start) / step
        parallel = np.abs(step) < 1e-12
        inside = (start > self.low + MARGIN) & (start < self.high - MARGIN)
        near = np.where(parallel, np.where(inside, -np.inf, np.inf), np.minimum(a, b))
        far = np.where(parallel, np.where(inside, np.inf, -np.inf), np.maximum(a, b))
        return near.max(-1), far.min(-1), near.argmax(-1)

    def paths_to(self, end: np.ndarray) -> np.ndarray:
        """Return the lengths of shortest paths from every corner to a point, float64 [V]."""
        if not len(self.corners):
            return np.zeros(0)
        return (self.distances + self._direct(end, self.corners)).min(-1)

    def distance(self, start: np.ndarray, end: np.ndarray, to_end: np.ndarray) -> float:
        """Return the length of the shortest path, infinite if there is none. to_end: `paths_to(end)`."""
        through = self._direct(start, self.corners) + to_end
        return float(min(self._direct(start, end[None])[0], through.min() if len(through) else np.inf))

    def path(self, start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
        """Return the points of the shortest path with both ends; an empty list if there is none."""
        to_end = self.paths_to(end)
        total = self.distance(start, end, to_end)
        if not np.isfinite(total):
            return []
        points = [start]
        for _ in range(len(self.corners) + 1):
            last = points[-1]
            if np.isfinite(self._direct(last, end[None])[0]):
                break
            costs = self._direct(last, self.corners) + to_end
            costs[(np.abs(self.corners - last) < MARGIN).all(-1)] = np.inf
            points.append(self.corners[costs.argmin()])
        return [*points, end]

    def move(self, start: np.ndarray, end: np.ndarray, slide: bool = True) -> np.ndarray:
        """Return the end of a step from a free point towards `end`, which stops at boxes or slides along them."""
        for _ in range(3):
            enter, leave, axis = (value[0] for value in self._crossings(start, end[None]))
            hits = np.maximum(enter, 0.0) < np.minimum(leave, 1.0)
            if not hits.any():
                return end
            first = int(np.where(hits, enter, np.inf).argmin())
            across, fraction = axis[first], max(enter[first], 0.0)
            stop = start + (end - start) * fraction
            stop[across] = (self.low if end[across] > start[across] else self.high)[first, across]
            if not slide:
                return stop
            end = np.where(np.arange(2) == across, stop, end)
            start = stop
        return start

    def snap(self, point: np.ndarray, allowed: Callable[[np.ndarray], bool] | None = None) -> np.ndarray:
        """Return the nearest free point, or NaN if there is none.

        Args:
            point: Float64 [2].
            allowed: Whether a free point can be the result. Default: every point.
        """
        if self.is_free(point[None])[0] and (allowed is None or allowed(point)):
            return point
        sides = [self.corners]
        for axis in range(2):  # push the point out through each side of each box
            for side in (self.low, self.high):
                pushed = np.repeat(point[None], len(side), 0)
                pushed[:, axis] = side[:, axis]
                sides.append(pushed)
        candidates = np.concatenate(sides)
        candidates = candidates[self.is_free(candidates)]
        if allowed is not None:
            candidates = candidates[[allowed(candidate) for candidate in candidates]]
        if not len(candidates):
            return np.full(2, np.nan)
        return candidates[np.linalg.norm(candidates - point, axis=-1).argmin()]
