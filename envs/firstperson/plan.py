"""Floor plans: rectangular rooms joined by doors, as walls for rendering and collision."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.scene import BOX, WALL_HEIGHT, WHITE, Array, Solids

Rectangle = tuple[float, float, float, float]  # (x0, x1, z0, z1) in meters, x0 < x1, z0 < z1


@dataclasses.dataclass(frozen=True)
class Door:
    """A passage between two rooms that face each other.

    Attributes:
        along: The axis of movement through the door.
        area: The area between the rooms. Its extent along the axis is 0 if the rooms touch.
        top: Height in meters. There is no lintel if it reaches the ceiling.
    """

    along: Literal["x", "z"]
    area: Rectangle
    top: float = WALL_HEIGHT


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rooms, given by their inner areas, and the doors between them."""

    rooms: tuple[Rectangle, ...]
    doors: tuple[Door, ...] = ()

    def walls(self) -> np.ndarray:
        """Return both ends of every piece of wall, [S, 2, 2]: sides of rooms without doors, then the doors' jambs."""
        pieces: list[tuple[tuple[float, float], tuple[float, float]]] = []
        for x0, x1, z0, z1 in self.rooms:
            for x in (x0, x1):
                gaps = [
                    d.area[2:] for d in self.doors if d.along == "x" and x in d.area[:2] and _within(d.area[2:], z0, z1)
                ]
                pieces += [((x, a), (x, b)) for a, b in _without(z0, z1, gaps)]
            for z in (z0, z1):
                gaps = [
                    d.area[:2] for d in self.doors if d.along == "z" and z in d.area[2:] and _within(d.area[:2], x0, x1)
                ]
                pieces += [((a, z), (b, z)) for a, b in _without(x0, x1, gaps)]
        for door in self.doors:
            pieces += jambs(door)
        return np.array(pieces, np.float32)

    def lintels(self) -> Solids:
        """Return the solids above doors that end below the ceiling."""
        low = [door for door in self.doors if door.top < WALL_HEIGHT]
        areas = np.array([door.area for door in low], np.float32).reshape(-1, 2, 2)
        count = len(low)
        return Solids(
            centre=areas.mean(2),
            yaw=np.zeros(count, np.float32),
            half=(areas[:, :, 1] - areas[:, :, 0]) / 2,
            bottom=np.array([door.top for door in low], np.float32),
            top=np.full(count, WALL_HEIGHT, np.float32),
            colour=np.tile(np.asarray(WHITE, np.float32), (count, 1)),
            shape=np.full(count, BOX, np.int32),
        )

    def regions(self) -> tuple[Rectangle, ...]:
        """Return the areas that the agent can stand in: rooms, and doors with a positive area."""
        return self.rooms + tuple(door.area for door in self.doors if _size(door.area) > 0)

    def connected(self, first: Rectangle, second: Rectangle) -> bool:
        """Return whether doors connect a room that overlaps `first` with one that overlaps `second`."""
        reached = {i for i, room in enumerate(self.rooms) if _overlap(room, first)}
        for _ in self.rooms:
            for door in self.doors:
                ends = {i for i, room in enumerate(self.rooms) if _touches(room, door.area)}
                reached |= ends if ends & reached else set()
        return any(_overlap(self.rooms[i], second) for i in reached)


def jambs(door: Door) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the two walls at the sides of a door, or none if the rooms touch."""
    x0, x1, z0, z1 = door.area
    if _size(door.area) == 0:
        return []
    if door.along == "x":
        return [((x0, z0), (x1, z0)), ((x0, z1), (x1, z1))]
    return [((x0, z0), (x0, z1)), ((x1, z0), (x1, z1))]


def touches_walls(position: jax.Array, radius: float, ends: Array) -> jax.Array:
    """Return whether a circle at `position`, [2], intersects a wall with ends [S, 2, 2], bool []."""
    start = jnp.asarray(ends)[:, 0]
    along = jnp.asarray(ends)[:, 1] - start
    length = jnp.maximum(jnp.sum(along**2, -1), 1e-12)
    share = jnp.clip(jnp.sum((position - start) * along, -1) / length, 0.0, 1.0)
    nearest = start + share[:, None] * along
    return jnp.any(jnp.sum((nearest - position) ** 2, -1) < radius**2)


def _size(area: Rectangle) -> float:
    return (area[1] - area[0]) * (area[3] - area[2])


def _within(gap: tuple[float, ...], low: float, high: float) -> bool:
    return low <= gap[0] and gap[1] <= high


def _without(low: float, high: float, gaps: list) -> list[tuple[float, float]]:
    """Return the intervals of [low, high] that remain without the gaps."""
    pieces = []
    for start, end in sorted(gaps):
        pieces.append((low, start))
        low = end
    pieces.append((low, high))
    return [(a, b) for a, b in pieces if b > a]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _touches(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[1] and b[0] <= a[1] and a[2] <= b[3] and b[2] <= a[3]
