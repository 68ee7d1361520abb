"""Furniture made of boxes: tables, cabinets, shelves and sofas with the sizes in the plans of `house-objnav`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

KINDS = ("table", "cabinet", "shelf", "sofa")
BOARD = 0.04  # meters; thickness of boards
LEG = 0.06  # meters; side of a leg
SEAT = 0.42  # meters; height of the seat of a sofa


class Piece(NamedTuple):
    """A piece of furniture.

    Attributes:
        kind: One of KINDS.
        low: Lower corners of its boxes, float64 [n, 3].
        high: Upper corners of its boxes, float64 [n, 3].
        texture: Name of its texture.
        surface: Corners of the surface for objects, (low, high), float64 [3] each; equal heights.
    """

    kind: str
    low: np.ndarray
    high: np.ndarray
    texture: str
    surface: tuple[np.ndarray, np.ndarray]

    @property
    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of the box around it."""
        return self.low.min(0), self.high.max(0)


def build(kind: str, center: np.ndarray, half: np.ndarray, height: float) -> Piece:
    """Return a piece of furniture.

    Args:
        kind: One of KINDS.
        center: Its center (x, z), float [2].
        half: Half its extents along x and z, float [2].
        height: Its height, in meters.
    """
    make = {"table": _table, "cabinet": _cabinet, "shelf": _shelf, "sofa": _sofa}[kind]
    rows = np.array(make(float(half[0]), float(half[1]), float(height)))
    offset = np.array([center[0], 0.0, center[1]])
    low, high = rows[:, :3] + offset, rows[:, 3:] + offset
    first_low, first_high = low[0].copy(), high[0]  # objects stand on the first box
    first_low[1] = first_high[1]
    return Piece(kind, low, high, "fabric" if kind == "sofa" else "wood", (first_low, first_high))


def _table(x: float, z: float, h: float) -> list[list[float]]:
    legs = [[a, 0, b, a + LEG, h - BOARD, b + LEG] for a in (-x + LEG, x - 2 * LEG) for b in (-z + LEG, z - 2 * LEG)]
    return [[-x, h - BOARD, -z, x, h, z], *legs]


def _cabinet(x: float, z: float, h: float) -> list[list[float]]:
    return [[-x, h - BOARD, -z, x, h, z], [-x + BOARD, 0, -z + BOARD, x - BOARD, h - BOARD, z - BOARD]]


def _shelf(x: float, z: float, h: float) -> list[list[float]]:
    """Return a shelf that is open to +z, with boards at the bottom, in the middle and on top."""
    sides = [[a, 0, -z, a + BOARD, h - BOARD, z] for a in (-x, x - BOARD)]
    back = [-x + BOARD, 0, -z, x - BOARD, h - BOARD, -z + BOARD]
    boards = [[-x + BOARD, y, -z + BOARD, x - BOARD, y + BOARD, z] for y in (0.05, h / 2)]
    return [[-x, h - BOARD, -z, x, h, z], *sides, back, *boards]


def _sofa(x: float, z: float, h: float) -> list[list[float]]:
    """Return a seat with a back along its longer side."""
    seat, depth = min(SEAT, h - BOARD), 0.25 * min(2 * x, 2 * z)
    if x >= z:
        return [[-x, 0, -z + depth, x, seat, z], [-x, 0, -z, x, h, -z + depth]]
    return [[-x + depth, 0, -z, x, seat, z], [-x, 0, -z, -x + depth, h, z]]
