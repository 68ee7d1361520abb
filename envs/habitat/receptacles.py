"""Surfaces that objects can stand on, in the description of habitat-lab. Needs only numpy.

The file is JSON, {scene: {name: {"position": [x, y, z], "scale": [x, y, z]}, …}, …}. The entries of a scene are those
of AABB receptacles under `user_defined` in habitat's stage and scene-instance configs (keys that begin with
"receptacle"). As in habitat-lab's AABBReceptacle, position is the center of the box and scale HALF its size. Objects
stand on its bottom.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import numpy as np

from relic_jax.bridge.worker import SetupError

PREFIX = "receptacle"
EDGE = 0.8  # share of a surface's sides used for the centers of objects, which keeps them off the edges


class Receptacle(NamedTuple):
    """The box above a surface, given by its corners in scene coordinates, float64 [3]."""

    name: str
    low: np.ndarray
    high: np.ndarray


def read(path: str) -> dict[str, list[Receptacle]]:
    """Read the receptacles of every scene in a file. Raises SetupError if it is malformed."""
    try:
        if not os.path.isfile(path):  # opening a named pipe would block forever
            raise FileNotFoundError("it is not a file")
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        return {str(scene): _of_scene(named) for scene, named in data.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        allowed = 'a JSON file {scene: {name: {"position": [x, y, z], "scale": [x, y, z]}}}'
        reason = f"{type(error).__name__}: {error}"
        raise SetupError(f"receptacles is {path!r}; allowed: {allowed} ({reason})") from None


def _of_scene(named: dict[str, Any]) -> list[Receptacle]:
    receptacles = []
    for name, values in sorted(named.items()):
        if not name.startswith(PREFIX):  # other entries of user_defined
            continue
        middle, half = (np.array(values[field], np.float64) for field in ("position", "scale"))
        if middle.shape != (3,) or half.shape != (3,) or not np.isfinite([middle, half]).all() or (half < 0).any():
            raise ValueError(f"{name} has position {values['position']} and scale {values['scale']}")
        receptacles.append(Receptacle(name, middle - half, middle + half))
    return receptacles


def places(receptacles: list[Receptacle], random: np.random.RandomState, count: int) -> list[np.ndarray]:
    """Draw positions, float32 [3], for up to `count` objects, each uniformly on a different receptacle."""
    order = random.permutation(len(receptacles))[:count]
    points = []
    for index in order:
        low, high = receptacles[index].low, receptacles[index].high
        share = 0.5 + EDGE * (random.uniform(0, 1, 3) - 0.5)
        point = low + share * (high - low)
        points.append(np.array([point[0], low[1], point[2]], np.float32))
    return points
