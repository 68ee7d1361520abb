"""The environment of the bridge's benchmark, for worker processes. Python 3.8 and numpy."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec


class Frames:
    """Return one of two frames at each step, and never end an episode.

    Args:
        size: Pixels of a frame's sides.
        milliseconds: Duration of a step, which sleeps as if it waited for a renderer.
        horizon: Steps of the longest episode.
    """

    def __init__(self, size: int = 128, milliseconds: float = 0.0, horizon: int = 2**31 - 1) -> None:
        self.spec = Spec(
            name="frames",
            observation={"rgb": ArraySpec("uint8", (size, size, 3))},
            action=ArraySpec("int32", ()),
            actions=5,
            low=0.0,
            high=0.0,
            metrics=(),
            horizon=horizon,
            restorable=True,
            expert=True,
        )
        self._frames = [np.full((size, size, 3), value, np.uint8) for value in range(2)]
        self._seconds, self._count = milliseconds / 1000, 0

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """Return the first frame."""
        return {"rgb": self._frames[0]}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Return the other frame."""
        if self._seconds:
            time.sleep(self._seconds)
        self._count += 1
        return {"rgb": self._frames[self._count & 1]}, 0.0, False, False, {}

    def expert(self) -> int:
        """Return an arbitrary action."""
        return 0

    def close(self) -> None:
        """Do nothing."""
