"""The islands of a navigation mesh: connected parts of the free space, and a roof.

Runs in a worker process: Python 3.8 and numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from relic_jax.envs.habitat.soft.house import MARGIN, WALL_HEIGHT, Boxes, FreeSpace, House

ROOF = WALL_HEIGHT + 0.1  # meters; height of a roof
LEAST = 1e-3  # square meters; smaller parts of the free space are slivers between boxes that touch


class Level(NamedTuple):
    """A plane to walk on.

    Attributes:
        height: Its y, in meters.
        space: The free space on it.
        parts: The connected parts of the free space.
        first: Index of its first island. Island `first + k` is part k.
    """

    height: float
    space: FreeSpace
    parts: Parts
    first: int


class Parts:
    """The connected parts of a free space.

    The sides of all obstacles divide the house into rectangles that are wholly free or wholly blocked. Rectangles that
    share a side are connected, with the same margin as in `FreeSpace`.

    Attributes:
        areas: Square meters of each part.
    """

    def __init__(self, space: FreeSpace) -> None:
        self._sides = [self._cuts(space, axis) for axis in (0, 1)]
        middles = [(sides[1:] + sides[:-1]) / 2 for sides in self._sides]
        grid = np.stack(np.meshgrid(*middles, indexing="ij"), -1)
        free = space.is_free(grid.reshape(-1, 2)).reshape(grid.shape[:2])
        labels = _label(free)
        sizes = np.outer(*(np.diff(sides) for sides in self._sides))
        totals = np.bincount(labels[free], sizes[free], minlength=1) if free.any() else np.zeros(0)
        large = np.flatnonzero(totals >= LEAST)
        self.areas = totals[large]
        renumbered = np.full(len(totals) + 1, -1)  # the last entry is that of blocked rectangles, label -1
        renumbered[large] = np.arange(len(large))
        self._labels = renumbered[labels]

    @staticmethod
    def _cuts(space: FreeSpace, axis: int) -> np.ndarray:
        ends = [space.low[:, axis] + MARGIN, space.high[:, axis] - MARGIN, np.array([0.0, space.size[axis]])]
        return np.unique(np.clip(np.concatenate(ends), 0.0, space.size[axis]))

    def of(self, point: np.ndarray) -> int:
        """Return the index of the part of a free point [2], -1 for other points."""
        rectangles = []
        for sides, value in zip(self._sides, point):  # noqa: B905 (Python 3.8)
            after = int(np.searchsorted(sides, value + MARGIN / 2))
            before = int(np.searchsorted(sides, value - MARGIN / 2))
            rectangles.append(range(max(before - 1, 0), min(max(after, 1), len(sides) - 1)))
        labels = [int(self._labels[i, j]) for i in rectangles[0] for j in rectangles[1]]
        return max(labels, default=-1)


def _label(free: np.ndarray) -> np.ndarray:
    """Return the index of the connected part of each cell, int [n, m]; -1 for blocked cells."""
    labels, count = np.full(free.shape, -1), 0
    for row, column in np.argwhere(free).tolist():
        if labels[row, column] >= 0:
            continue
        queue = [(row, column)]
        labels[row, column] = count
        while queue:
            i, j = queue.pop()
            for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                if 0 <= a < free.shape[0] and 0 <= b < free.shape[1] and free[a, b] and labels[a, b] < 0:
                    labels[a, b] = count
                    queue.append((a, b))
        count += 1
    return labels


def levels_of(house: House, space: FreeSpace) -> list[Level]:
    """Return the floor, and the roof if the house has one. The roof has no obstacles."""
    levels = [Level(0.0, space, Parts(space), 0)]
    if house.roof:
        nothing = Boxes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
        open_space = FreeSpace(house._replace(boxes=nothing, tables=()), 0.0)
        levels.append(Level(ROOF, open_space, Parts(open_space), len(levels[0].parts.areas)))
    return levels
