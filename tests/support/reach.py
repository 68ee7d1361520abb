"""An environment with continuous actions for worker processes. Python 3.8 and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec


class Reach:
    """A point in the plane, moved by actions in [−2, 2]² towards the task's goal.

    Observation: "vector", float32 [3], is the position and the goal's first component times noise. The reward is minus
    the L1 distance to the goal. Episodes end after `horizon` steps.
    """

    def __init__(self, horizon: int = 5) -> None:
        self.spec = Spec(
            name="reach",
            observation={"vector": ArraySpec("float32", (3,))},
            action=ArraySpec("float32", (2,)),
            actions=0,
            low=-2.0,
            high=2.0,
            metrics=(),
            horizon=horizon,
            restorable=True,
            expert=True,
        )
        self.goal = self.position = np.zeros(2, np.float32)
        self.count, self.random = 0, np.random.RandomState(0)

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """Start an episode of the task {"goal": [x, y]}."""
        self.goal, self.position = np.array(task["goal"], np.float32), np.zeros(2, np.float32)
        self.count, self.random = 0, np.random.RandomState(seed)
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Move the point."""
        self.position = self.position + action
        self.count += 1
        reward = -float(np.abs(self.position - self.goal).sum())
        return self._observe(), reward, False, self.count >= self.spec.horizon, {}

    def expert(self) -> np.ndarray:
        """Return the action that leads straight to the goal."""
        return np.clip(self.goal - self.position, -2, 2)

    def close(self) -> None:
        """Do nothing."""

    def _observe(self) -> dict[str, np.ndarray]:
        return {"vector": np.array([*self.position, self.goal[0] * self.random.uniform()], np.float32)}
