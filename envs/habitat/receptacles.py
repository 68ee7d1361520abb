"""Surfaces that objects may stand on, scene by scene, as habitat-lab describes them. Numpy alone.

The file is JSON, {scene: {name: {"position": [x, y, z], "scale": [x, y, z]}, …}, …}: for every scene what habitat's
stage and scene-instance configs have under `user_defined` for an AABB receptacle (keys that begin with "receptacle").
position: the box's middle, scale: HALF its sizes, as in habitat-lab's AABBReceptacle. Objects stand on its bottom.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import numpy as np

from relic_jax.bridge.worker import SetupError

PREFIX = "receptacle"
EDGE = 0.8  # share of a surface's sides that objects are put in: their middles keep off the edge


class Receptacle(NamedTuple):
    """low, high: float64 [3], corners of the box above the surface, in the scene's coordinates."""

    name: str
    low: np.ndarray
    high: np.ndarray


def read(path: str) -> dict[str, list[Receptacle]]:
    """The receptacles of every scene in a file. Raises SetupError."""
    try:
        if not os.path.isfile(path):  # opening a named pipe would wait for ever
            raise FileNotFoundError("it is not a file")
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        return {str(scene): _of_scene(named) for scene, named in data.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        allowed = 'a JSON file {scene: {name: {"position": [x, y, z], "scale": [x, y, z]}}}'
        reason = f"{type(error).__name__}: {error}"
        raise SetupError(f"receptacles is {path!r}; allowed: {allowed} ({reason})") from None


def _of_scene(named: dict[str, Any]) -> list[Receptacle]:
    found = []
    for name, values in sorted(named.items()):
        if not name.startswith(PREFIX):  # other things under user_defined
            continue
        middle, half = (np.array(values[field], np.float64) for field in ("position", "scale"))
        if middle.shape != (3,) or half.shape != (3,) or not np.isfinite([middle, half]).all() or (half < 0).any():
            raise ValueError(f"{name} has position {values['position']} and scale {values['scale']}")
        found.append(Receptacle(name, middle - half, middle + half))
    return found


def places(receptacles: list[Receptacle], random: np.random.RandomState, count: int) -> list[np.ndarray]:
    """Places for up to `count` objects, each drawn uniformly on a receptacle of its own: float32 [3]."""
    chosen = random.permutation(len(receptacles))[:count]
    found = []
    for index in chosen:
        low, high = receptacles[index].low, receptacles[index].high
        share = 0.5 + EDGE * (random.uniform(0, 1, 3) - 0.5)
        point = low + share * (high - low)
        found.append(np.array([point[0], low[1], point[2]], np.float32))
    return found
