"""Renders a gridworld trial with numpy.

The upper part is the grid, with y upwards. Cells visited in the trial are blue, other cells white; the blue line is the
path of the current episode, the orange disc the agent, and squares are goals. The lower part has one bar per episode of
the trial, whose height is the return; the bar of the current episode is orange.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
GRID_LINE: Colour = (205, 208, 214)
VISITED: Colour = (219, 231, 246)
BLUE: Colour = (66, 110, 190)
ORANGE: Colour = (236, 112, 20)
GREEN: Colour = (38, 160, 92)
GOLD: Colour = (226, 176, 20)
STRIP: Colour = (240, 241, 244)

STRIP_HEIGHT = 72  # pixels; height of the strip with bars below the grid
STRIP_MARGIN = 8  # pixels; between the tallest bar and the grid


@dataclasses.dataclass(frozen=True)
class Mark:
    """A colored square that marks the cell (x, y), int [2]."""

    cell: np.ndarray
    colour: Colour


def trial_frames(
    positions: np.ndarray,
    marks: Sequence[Mark] | Callable[[int], Sequence[Mark]],
    episodes: np.ndarray,
    rewards: np.ndarray,
    size: tuple[int, int],
    max_frames: int = 240,
) -> np.ndarray:
    """Render the T steps of one trial.

    Args:
        positions: [T, 2]; the agent's cell (x, y) at each step.
        marks: Cells to mark, or a function of the step that returns them.
        episodes: Int [T]; index of the episode at each step, ascending.
        rewards: [T]; reward of the action at each step.
        size: (width, height) of the grid in cells.
        max_frames: Maximum number of frames.

    Returns:
        Uint8 [n, H, W, 3], n = min(T, max_frames) evenly spaced steps.
    """
    positions = np.asarray(positions).astype(int)
    width, height = size
    cell = max(12, 320 // max(width, height))  # pixels; images of all presets have sides of at least 240 pixels
    first_visit = _first_visits(positions, size)
    running = running_returns(rewards, episodes)
    frames = []
    for step in np.linspace(0, len(positions) - 1, min(len(positions), max_frames)).round().astype(int):
        first = np.searchsorted(episodes, episodes[step])
        grid = _background(size, cell, marks(step) if callable(marks) else marks)
        visited = (first_visit <= step)[::-1].repeat(cell, axis=0).repeat(cell, axis=1)
        white = [grid[..., channel] == value for channel, value in enumerate(WHITE)]  # faster than (…).all(-1)
        grid[visited & white[0] & white[1] & white[2]] = VISITED
        _draw_path(grid, positions[first : step + 1], height, cell)
        strip = return_bars(running, episodes, step, width * cell)
        frames.append(np.concatenate([grid, strip]))
    return np.stack(frames)


def _background(size: tuple[int, int], cell: int, marks: Sequence[Mark]) -> np.ndarray:
    """Return the unvisited grid with its marks, uint8 [height·cell, width·cell, 3]."""
    width, height = size
    image = np.full((height * cell, width * cell, 3), WHITE, np.uint8)
    image[::cell] = GRID_LINE
    image[:, ::cell] = GRID_LINE
    for mark in marks:
        top, left = _corner(mark.cell, height, cell)
        inset = cell // 8 + 1
        image[top + inset : top + cell - inset + 1, left + inset : left + cell - inset + 1] = mark.colour
    return image


def _first_visits(positions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the step of the first visit of each cell, int [height, width]; T for cells without a visit."""
    width, height = size
    first = np.full((height, width), len(positions))
    x, y = positions.T
    np.minimum.at(first, (y, x), np.arange(len(positions)))
    return first


def running_returns(rewards: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Return the return of the current episode up to and including each step, float [T]."""
    total = np.cumsum(rewards, dtype=float)
    before = np.concatenate([[0.0], total])
    return total - before[np.searchsorted(episodes, episodes)]


def _draw_path(grid: np.ndarray, path: np.ndarray, height: int, cell: int) -> None:
    """Draw the path, [n, 2] cells in which neighbors touch or are equal, and the agent at its end, in place."""
    thick = max(1, cell // 10)
    corners = np.array([_corner(position, height, cell) for position in path]) + cell // 2
    for a, b in itertools.pairwise(corners):
        (top, left), (bottom, right) = np.minimum(a, b) - thick // 2, np.maximum(a, b) + (thick + 1) // 2
        grid[top:bottom, left:right] = BLUE
    rows, columns = np.ogrid[: grid.shape[0], : grid.shape[1]]
    row, column = corners[-1]
    radius = max(0.3 * cell, 5)  # visible on a grid of small cells
    grid[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = ORANGE


def return_bars(running: np.ndarray, episodes: np.ndarray, step: int, width: int) -> np.ndarray:
    """Return the strip at `step`, uint8 [STRIP_HEIGHT, width, 3]. Bars are scaled to the tallest of the trial."""
    strip = np.full((STRIP_HEIGHT, width, 3), STRIP, np.uint8)
    strip[0] = GRID_LINE
    scale = (STRIP_HEIGHT - STRIP_MARGIN) / max(running.max(), 1e-9)
    current = episodes[step]
    edges = np.linspace(0, width, episodes[-1] + 2).astype(int)
    ends = np.searchsorted(episodes, np.arange(current + 1), side="right") - 1
    for episode, end in enumerate(np.minimum(ends, step)):
        bar = max(1, round(scale * max(running[end], 0.0)))
        gap = 1 if edges[episode + 1] - edges[episode] > 2 else 0
        strip[-bar:, edges[episode] + gap : edges[episode + 1]] = ORANGE if episode == current else BLUE
    return strip


def _corner(position: np.ndarray, height: int, cell: int) -> tuple[int, int]:
    """Return (row, column) of the top left pixel of a cell. y points upwards."""
    x, y = position
    return (height - 1 - int(y)) * cell, int(x) * cell
