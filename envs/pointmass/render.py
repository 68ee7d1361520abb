"""Renders a trial of the point with numpy.

The upper part is the plane, with y upwards: the half circle of all goals, the rewarded disc, the goal in green, the
path of the current episode in blue and the point in orange. The lower part has one bar per episode of the trial, whose
height is the return.
"""

from __future__ import annotations

import itertools

import numpy as np

from relic_jax.envs.darkroom.render import BLUE, GREEN, GRID_LINE, ORANGE, VISITED, WHITE, return_bars, running_returns

SIDE = 320  # pixels; side of the plane
POINT = 0.05  # radius of the point and of the goal in the plane


def trial_frames(
    positions: np.ndarray,
    goal: np.ndarray,
    episodes: np.ndarray,
    rewards: np.ndarray,
    wall: float,
    reach: float,
    max_frames: int = 240,
) -> np.ndarray:
    """Render the T steps of one trial.

    Args:
        positions: Float [T, 2]; position of the point at each step.
        goal: Float [2].
        episodes: Int [T]; index of the episode at each step, ascending.
        rewards: [T]; reward of the action at each step.
        wall: Half the side of the plane.
        reach: Radius of the rewarded disc.
        max_frames: Maximum number of frames.

    Returns:
        Uint8 [n, H, W, 3], n = min(T, max_frames) evenly spaced steps.
    """
    x, y = np.meshgrid(np.linspace(-wall, wall, SIDE), np.linspace(wall, -wall, SIDE))
    background = np.full((SIDE, SIDE, 3), WHITE, np.uint8)
    background[_near(x, y, goal, reach)] = VISITED
    background[(np.abs(np.hypot(x, y) - 1) < 0.01) & (y >= 0)] = GRID_LINE
    background[_near(x, y, goal, POINT)] = GREEN
    running = running_returns(rewards, episodes)
    frames = []
    for step in np.linspace(0, len(positions) - 1, min(len(positions), max_frames)).round().astype(int):
        first = np.searchsorted(episodes, episodes[step])
        plane = background.copy()
        rows, columns = _pixels(_path(positions[first : step + 1]), wall)
        for offset in (0, 1):
            plane[np.minimum(rows + offset, SIDE - 1), columns] = BLUE
        plane[_near(x, y, positions[step], POINT)] = ORANGE
        frames.append(np.concatenate([plane, return_bars(running, episodes, step, SIDE)]))
    return np.stack(frames)


def _near(x: np.ndarray, y: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(x - centre[0], y - centre[1]) <= radius


def _path(corners: np.ndarray) -> np.ndarray:
    """Return points on the path between corners, dense enough for a line without gaps, [m, 2]."""
    share = np.linspace(0, 1, 20, endpoint=False)[:, None]
    parts = [a + share * (b - a) for a, b in itertools.pairwise(corners)]
    return np.concatenate([*parts, corners[-1:]])


def _pixels(points: np.ndarray, wall: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, columns) of points [m, 2]."""
    column, row = ((points * [1, -1] + wall) / (2 * wall) * (SIDE - 1)).round().astype(int).T
    return row, column
