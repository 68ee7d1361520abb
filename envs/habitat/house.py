"""Houses of axis-aligned boxes: layout, collision, and exact shortest paths. Worker side: Python 3.8 and numpy.

The floor is the plane y = 0, x and z lie in it (habitat's axes: y up, −z ahead at heading 0). The free space of an
agent is the house's rectangle less every box inflated by the agent's radius, with square corners. Shortest paths in it
bend only at corners of inflated boxes, so a visibility graph over these gives them exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WALL_HEIGHT, WALL, DOOR = 2.5, 0.1, 1.1
MARGIN = 1e-4  # metres that count as touching: agents' positions are rounded to float32


class Boxes(NamedTuple):
    """n boxes. low, high: float64 [n, 3]. color: uint8 [n, 3]."""

    low: np.ndarray
    high: np.ndarray
    color: np.ndarray


class House(NamedTuple):
    """size: (x, z) extents in metres, from 0. boxes: walls and furniture. tables: those that carry things."""

    size: tuple[float, float]
    boxes: Boxes
    tables: tuple[int, ...]


def make_house(seed: int) -> House:
    """A house of 2×2 or 2×3 rooms with walls, doors and tables; equal seeds give equal houses."""
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
    """Pairs of neighbouring rooms that are joined: a random spanning tree and now and then one more."""
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
    """A wall along z at x = `at` (vertical) or along x at z = `at`, in two parts where it has a door."""
    middle = rng.uniform(start + 0.9, stop - 0.9)
    parts = [(start, middle - DOOR / 2), (middle + DOOR / 2, stop)] if door else [(start, stop)]
    found = []
    for a, b in parts:
        low, high = (at - WALL / 2, at + WALL / 2), (a, b)
        x, z = (low, high) if vertical else (high, low)
        found.append([x[0], 0.0, z[0], x[1], WALL_HEIGHT, z[1]])
    return found


def _table(rng: np.random.RandomState, x0: float, z0: float, x1: float, z1: float) -> list[float]:
    """A table in the inner part of a room, so that one can walk around it."""
    half = rng.uniform(0.25, 0.4, 2)
    x = rng.uniform(x0 + 1.2, x1 - 1.2) if x1 - x0 > 2.4 else (x0 + x1) / 2
    z = rng.uniform(z0 + 1.2, z1 - 1.2) if z1 - z0 > 2.4 else (z0 + z1) / 2
    return [x - half[0], 0.0, z - half[1], x + half[0], rng.uniform(0.4, 0.8), z + half[1]]


class FreeSpace:
    """Where an agent of a given radius can be, and the exact shortest ways there. Points are float64 [2]: x, z."""

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
        """bool [n] for points [n, 2]. The boundary is free."""
        inside = (points[:, None] > self.low + MARGIN) & (points[:, None] < self.high - MARGIN)
        within = (points >= 0).all(-1) & (points <= self.size).all(-1)
        return np.asarray(within & ~inside.all(-1).any(-1))

    def _free_corners(self) -> np.ndarray:
        x = np.stack([self.low[:, 0], self.low[:, 0], self.high[:, 0], self.high[:, 0]], 1)
        z = np.stack([self.low[:, 1], self.high[:, 1], self.low[:, 1], self.high[:, 1]], 1)
        corners = np.stack([x.ravel(), z.ravel()], 1)
        return corners[self.is_free(corners)]

    def _all_pairs(self) -> np.ndarray:
        """Shortest ways between corners: float64 [V, V]."""
        count = len(self.corners)
        distance = (
            np.stack([self._direct(corner, self.corners) for corner in self.corners]) if count else np.zeros((0, 0))
        )
        for k in range(count):
            distance = np.minimum(distance, distance[:, k, None] + distance[k])
        return distance

    def _direct(self, start: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Length of the straight way from one point to many [n, 2], inf where it is blocked."""
        enter, leave, _ = self._crossings(start, ends)
        blocked = (np.maximum(enter, 0.0) < np.minimum(leave, 1.0)).any(-1)
        return np.where(blocked, np.inf, np.linalg.norm(ends - start, axis=-1))

    def _crossings(self, start: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the segments to `ends` [n, 2] are inside each of the m boxes: fractions enter, leave [n, m] (enter >
        leave: never), and the axis of the side they come in by, int [n, m].
        """
        step = ends[:, None] - start
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (self.low + MARGIN - start) / step, (self.high - MARGIN - start) / step
        parallel = np.abs(step) < 1e-12
        inside = (start > self.low + MARGIN) & (start < self.high - MARGIN)
        near = np.where(parallel, np.where(inside, -np.inf, np.inf), np.minimum(a, b))
        far = np.where(parallel, np.where(inside, np.inf, -np.inf), np.maximum(a, b))
        return near.max(-1), far.min(-1), near.argmax(-1)

    def ways_to(self, end: np.ndarray) -> np.ndarray:
        """Shortest ways from every corner to a point: float64 [V]."""
        if not len(self.corners):
            return np.zeros(0)
        return (self.distances + self._direct(end, self.corners)).min(-1)

    def distance(self, start: np.ndarray, end: np.ndarray, to_end: np.ndarray) -> float:
        """Length of the shortest way, inf where there is none. to_end: `ways_to(end)`."""
        through = self._direct(start, self.corners) + to_end
        return float(min(self._direct(start, end[None])[0], through.min() if len(through) else np.inf))

    def way(self, start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
        """The points of the shortest way, both ends included; empty where there is none."""
        to_end = self.ways_to(end)
        total = self.distance(start, end, to_end)
        if not np.isfinite(total):
            return []
        points = [start]
        for _ in range(len(self.corners) + 1):
            here = points[-1]
            if np.isfinite(self._direct(here, end[None])[0]):
                break
            costs = self._direct(here, self.corners) + to_end
            costs[(np.abs(self.corners - here) < MARGIN).all(-1)] = np.inf
            points.append(self.corners[costs.argmin()])
        return [*points, end]

    def move(self, start: np.ndarray, end: np.ndarray, slide: bool = True) -> np.ndarray:
        """Where a step from a free point towards `end` arrives: at the first box, or along its side where it slides."""
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

    def snap(self, point: np.ndarray) -> np.ndarray:
        """The nearest free point, NaN where there is none."""
        if self.is_free(point[None])[0]:
            return point
        sides = [self.corners]
        for axis in range(2):  # the point pushed out through each side of each box
            for side in (self.low, self.high):
                pushed = np.repeat(point[None], len(side), 0)
                pushed[:, axis] = side[:, axis]
                sides.append(pushed)
        candidates = np.concatenate(sides)
        candidates = candidates[self.is_free(candidates)]
        if not len(candidates):
            return np.full(2, np.nan)
        return candidates[np.linalg.norm(candidates - point, axis=-1).argmin()]
