"""Miniworld's Maze: a level of square cells whose open doors are part of the task."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.level import BOX_RADIUS, Level, LevelTask, Walls
from relic_jax.envs.firstperson.plan import Door, Plan
from relic_jax.envs.firstperson.scene import RoomTooSmallError, rectangle_walls

CELL, GAP = 3.0, 0.25  # meters; sides of a maze's cells, and the distance between them


@dataclasses.dataclass(frozen=True)
class Maze(Level):
    """A maze of square cells. The task says which doors between neighbors are open.

    The plan has all P = 2·rows·columns − rows − columns doors, in the order of `maze_plan`.

    Attributes:
        rows: Number of cells along z.
        columns: Number of cells along x.
    """

    rows: int = 8
    columns: int = 8

    def walls(self, task: LevelTask) -> Walls:
        """Return the outer walls and two walls per door: its jambs if it is open, the sides of the cells otherwise."""
        outer, closed, opened = maze_walls(self.plan, self.rows, self.columns)
        inner = jnp.where(jnp.asarray(task.passages)[:, None, None, None], jnp.asarray(opened), jnp.asarray(closed))
        return jnp.concatenate([jnp.asarray(outer), inner.reshape(-1, 2, 2)])

    def draw_tasks(self, count: int, seed: int) -> LevelTask:
        """Return random mazes with boxes. Recursive backtracking connects each pair of cells by exactly one path."""
        random = np.random.RandomState(seed)
        passages = np.array([draw_maze(random, self.rows, self.columns) for _ in range(count)])
        # Boxes are placed in the square in the middle of a cell that has room for them whichever doors are open.
        cells = np.array(self.plan.rooms)
        chosen = cells[random.randint(len(cells), size=count)]
        low, high = chosen[:, ::2] + BOX_RADIUS, chosen[:, 1::2] - BOX_RADIUS
        if (high <= low).any():
            raise RoomTooSmallError(
                f"cells are {cells[0].tolist()}; allowed: room for a box of radius {BOX_RADIUS:.3f}"
            )
        boxes = low + random.uniform(size=(count, 2)) * (high - low)
        yaw = random.uniform(-math.pi, math.pi, count)
        return LevelTask(boxes.astype(np.float32), yaw.astype(np.float32), passages)


def maze_plan(rows: int, columns: int) -> Plan:
    """Return cells row by row along x, and doors between all neighbors: first along x, row by row, then along z."""
    pitch = CELL + GAP
    cells = [(i * pitch, i * pitch + CELL, j * pitch, j * pitch + CELL) for j in range(rows) for i in range(columns)]
    doors = []
    for j in range(rows):
        for i in range(columns - 1):
            doors.append(Door("x", (i * pitch + CELL, (i + 1) * pitch, j * pitch, j * pitch + CELL)))
    for j in range(rows - 1):
        for i in range(columns):
            doors.append(Door("z", (i * pitch, i * pitch + CELL, j * pitch + CELL, (j + 1) * pitch)))
    return Plan(tuple(cells), tuple(doors))


@functools.cache
def maze_walls(plan: Plan, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return outer walls [4, 2, 2], and the two walls of each door [P, 2, 2, 2]: if it is closed, and if it is open."""
    pitch = CELL + GAP
    outer = rectangle_walls(0, columns * pitch - GAP, 0, rows * pitch - GAP)
    closed, opened = [], []
    for door in plan.doors:
        x0, x1, z0, z1 = door.area
        across = [((x0, z0), (x0, z1)), ((x1, z0), (x1, z1))]
        aside = [((x0, z0), (x1, z0)), ((x0, z1), (x1, z1))]
        closed.append(across if door.along == "x" else aside)
        opened.append(aside if door.along == "x" else across)
    return outer, np.array(closed, np.float32), np.array(opened, np.float32)


def draw_maze(random: np.random.RandomState, rows: int, columns: int) -> np.ndarray:
    """Draw which doors of `maze_plan` are open, bool [P], by recursive backtracking from the first cell."""
    along_x = rows * (columns - 1)
    passages = np.zeros(along_x + (rows - 1) * columns, bool)
    visited, path = {(0, 0)}, [(0, 0)]
    while path:
        j, i = path[-1]
        near = [(j + b, i + a) for a, b in ((0, 1), (0, -1), (-1, 0), (1, 0))]
        free = [(b, a) for b, a in near if 0 <= b < rows and 0 <= a < columns and (b, a) not in visited]
        if not free:
            path.pop()
            continue
        b, a = free[random.randint(len(free))]
        if b == j:
            passages[j * (columns - 1) + min(a, i)] = True
        else:
            passages[along_x + min(b, j) * columns + i] = True
        visited.add((b, a))
        path.append((b, a))
    return passages
