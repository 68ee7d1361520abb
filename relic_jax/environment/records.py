"""Records of a trial on the host: its steps and its map."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """T consecutive steps of one trial as numpy arrays on the host, for rendering.

    Attributes:
        observation: Pytree with leading axis T. The policy's input before each action.
        action: int32 [T] or [T, n], or float32 [T, n], in the environment's units.
        reward: float32 [T]. The reward of each action.
        first: bool [T]. Whether `observation` is the first of an episode.
        task: The task of the trial, without a leading axis.
        record: Pytree with leading axis T. `Environment.record` of the state of each observation.
    """

    observation: Any
    action: np.ndarray
    reward: np.ndarray
    first: np.ndarray
    task: Any
    record: Any = None

    @property
    def episode(self) -> np.ndarray:
        """Index of the episode of each step, from 0, int [T]."""
        return np.cumsum(self.first) - 1


@dataclasses.dataclass(frozen=True)
class TrialMap:
    """The map of a trial in which each episode asks for one of K kinds of objects, and what the agent saw.

    Positions are (x, y) in the units of the environment. Figures draw x to the right and y upwards.

    Attributes:
        position: float [T, 2]. Position of the agent at each step.
        asked: int [T]. The kind that the episode of each step asks for.
        in_view: bool [T, K]. The kinds of which the agent saw an object at each step.
        objects: float [n, 2]. Positions of the objects.
        kinds: int [n]. Kind of each object.
        low: float [2]. The lower left corner of the map.
        high: float [2]. Its upper right corner.
        walls: float [m, 2, 2]. Both ends of each wall.
        cell: Side of a cell, if the map is a grid whose lines start at `low`. None: no grid.
    """

    position: np.ndarray
    asked: np.ndarray
    in_view: np.ndarray
    objects: np.ndarray
    kinds: np.ndarray
    low: np.ndarray
    high: np.ndarray
    walls: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2, 2)))
    cell: float | None = None
