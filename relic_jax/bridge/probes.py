"""Small environments for tests and measurements of the bridge. Worker side: Python 3.8 and numpy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec


def spec(name: str, observation: dict[str, ArraySpec], **changes: Any) -> Spec:
    """A spec with five actions, no metrics, an expert and a horizon of 100, unless `changes` say otherwise."""
    action = ArraySpec("int32", ())
    values = {"metrics": (), "horizon": 100, "restorable": True, "expert": True, "actions": 5, "action": action}
    return Spec(**{"name": name, "observation": observation, "low": 0.0, "high": 0.0, **values, **changes})


class Frames:
    """Does nothing but hand out frames, and never ends an episode itself.

    milliseconds: how long a step takes (it waits, as for a renderer).
    """

    def __init__(self, size: int = 128, milliseconds: float = 0.0, horizon: int = 2**31 - 1) -> None:
        self.spec = spec("frames", {"rgb": ArraySpec("uint8", (size, size, 3))}, horizon=horizon)
        self._frames = [np.full((size, size, 3), value, np.uint8) for value in range(2)]
        self._seconds, self._count = milliseconds / 1000, 0

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """A frame."""
        return {"rgb": self._frames[0]}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Another frame."""
        if self._seconds:
            time.sleep(self._seconds)
        self._count += 1
        return {"rgb": self._frames[self._count & 1]}, 0.0, False, False, {}

    def expert(self) -> int:
        """Any action."""
        return 0

    def close(self) -> None:
        """Nothing."""


class Corridor:
    """A noisy walk on a line of cells to a goal, which is the task; every number depends on (task, seed, actions).

    Observation: "vector" [position, goal, noise] float32, "image" uint8 [4, 4, 3] of the position. Actions move by
    action − 2. An episode ends on the goal (reward 1) or after `horizon` steps.
    fault, at: what goes wrong at step `at` of an episode (crash, exit, hang, stuck: a hang in native code, nan, shape,
    print, raise; huge, huge_metric, huge_vector: 1e300), in worker `only` or in all (−1). once: a file that is made
    then and prevents it from then on.
    bad_reset: a file that, while it is there, makes resets fail.
    """

    def __init__(
        self,
        horizon: int = 20,
        fault: str = "",
        at: int = 3,
        only: int = -1,
        once: str = "",
        restorable: bool = True,
        bad_reset: str = "",
        milliseconds: float = 0.0,
    ) -> None:
        observation = {"vector": ArraySpec("float32", (3,)), "image": ArraySpec("uint8", (4, 4, 3))}
        changes = {"metrics": ("success", "jax"), "horizon": horizon, "restorable": restorable}
        self.spec = spec("corridor", observation, **changes)
        here = only in (-1, int(os.environ.get("RELIC_WORKER", "0")))
        self.fault, self.at, self.once = fault if here else "", at, once
        self.bad_reset = bad_reset if here else ""
        self._seconds = milliseconds / 1000
        self.task: Any = {}
        self.position = self.count = self.seed = 0
        self.random = np.random.RandomState(0)

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """task: {"goal": cell}."""
        if self.bad_reset and os.path.exists(self.bad_reset):
            raise RuntimeError("cannot be put back")
        self.task, self.seed, self.position, self.count = task, seed, 0, 0
        self.random = np.random.RandomState(seed)
        return self._observe()

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, float]]:
        """Moves."""
        if self._seconds:
            time.sleep(self._seconds)
        self.position += action - 2
        self.count += 1
        arrived = self.position == self.task["goal"]
        observation: dict[str, Any] = self._observe()
        reward = float(arrived) + 0.01 * self.random.uniform()
        wrong = bool(self.fault) and self.count == self.at and self._first()
        if wrong:
            observation, reward = self._go_wrong(observation, reward)
        metrics = {"success": float(arrived), "jax": float("jax" in sys.modules)}
        if wrong and self.fault == "huge_metric":
            metrics["success"] = 1e300
        return observation, reward, arrived, self.count >= self.spec.horizon, metrics

    def expert(self) -> int:
        """Towards the goal."""
        return int(np.clip(self.task["goal"] - self.position, -2, 2)) + 2

    def close(self) -> None:
        """Nothing."""

    def _observe(self) -> dict[str, np.ndarray]:
        vector = np.array([self.position, self.task["goal"], self.random.uniform()], np.float32)
        return {"vector": vector, "image": np.full((4, 4, 3), self.position % 256, np.uint8)}

    def _first(self) -> bool:
        """Whether `once` does not prevent it; of several workers that come at the same time, one makes the file."""
        with contextlib.suppress(FileExistsError):
            if self.once:
                open(self.once, "xb").close()
            return True
        return False

    def _go_wrong(self, observation: dict[str, Any], reward: float) -> tuple[dict[str, Any], float]:
        if self.fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "exit":
            print("the simulator gave up", flush=True)
            os._exit(7)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "stuck":
            ctypes.PyDLL(None).sleep(3600)  # keeps the interpreter's lock
        if self.fault == "raise":
            raise RuntimeError("the simulator raised")
        if self.fault == "print":
            os.write(1, b'{"op":"done","lane":0,"buffer":0}\n' * 1000)
        if self.fault == "shape":
            observation["vector"] = np.zeros(4, np.float32)
        if self.fault == "huge_vector":
            observation["vector"] = np.array([0.0, 1e300, 0.0])
        return observation, {"nan": float("nan"), "huge": 1e300}.get(self.fault, reward)


class Reach:
    """Continuous actions: a point of two components, moved by the action (in [−2, 2]) towards the task's goal.

    Observation: [position, goal's first component times noise]. Reward: minus the distance. Ends after `horizon` steps.
    """

    def __init__(self, horizon: int = 5) -> None:
        changes = {"actions": 0, "action": ArraySpec("float32", (2,)), "low": -2.0, "high": 2.0, "horizon": horizon}
        self.spec = spec("reach", {"vector": ArraySpec("float32", (3,))}, **changes)
        self.goal = self.position = np.zeros(2, np.float32)
        self.count, self.random = 0, np.random.RandomState(0)

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """task: {"goal": [x, y]}."""
        self.goal, self.position = np.array(task["goal"], np.float32), np.zeros(2, np.float32)
        self.count, self.random = 0, np.random.RandomState(seed)
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Moves."""
        self.position = self.position + action
        self.count += 1
        reward = -float(np.abs(self.position - self.goal).sum())
        return self._observe(), reward, False, self.count >= self.spec.horizon, {}

    def expert(self) -> np.ndarray:
        """Straight to the goal."""
        return np.clip(self.goal - self.position, -2, 2)

    def close(self) -> None:
        """Nothing."""

    def _observe(self) -> dict[str, np.ndarray]:
        return {"vector": np.array([*self.position, self.goal[0] * self.random.uniform()], np.float32)}
