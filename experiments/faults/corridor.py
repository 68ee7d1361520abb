"""An environment for worker processes that injects faults. Python 3.8 and numpy."""

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
from relic_jax.bridge.worker import activity


class Corridor:
    """A noisy walk on a line of cells to a goal, which is the task. All values depend on (task, seed, actions) only.

    Observation: "vector", float32 [3], is [position, goal, noise]; "image", uint8 [4, 4, 3], shows the position.
    Action a moves by a − 2. An episode ends at the goal (reward 1) or after `horizon` steps.

    Args:
        horizon: Steps of the longest episode.
        fault: The fault to inject: crash, exit, hang, stuck (a hang in native code), slow (half a second), raise,
            print, nan, shape; huge, huge_metric or huge_vector (the value 1e300). "" injects none.
        at: The step of an episode at which the fault occurs.
        only: The index of the worker that fails; −1: all of them.
        once: Path of a file that is created with the first fault and prevents any other.
        restorable: See `protocol.Spec`.
        bad_reset: Path of a file that makes resets fail while it exists.
        milliseconds: Duration of a step.
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
        self.spec = Spec(
            name="corridor",
            observation=observation,
            action=ArraySpec("int32", ()),
            actions=5,
            low=0.0,
            high=0.0,
            metrics=("success", "jax"),
            horizon=horizon,
            restorable=restorable,
            expert=True,
        )
        affected = only in (-1, int(os.environ.get("RELIC_WORKER", "0")))
        self.fault, self.at, self.once = fault if affected else "", at, once
        self.bad_reset = bad_reset if affected else ""
        self._seconds = milliseconds / 1000
        self.task: Any = {}
        self.position = self.count = self.seed = 0
        self.random = np.random.RandomState(0)

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """Start an episode of the task {"goal": cell}."""
        if self.bad_reset and os.path.exists(self.bad_reset):
            raise RuntimeError("cannot be reset")
        self.task, self.seed, self.position, self.count = task, seed, 0, 0
        self.random = np.random.RandomState(seed)
        return self._observe()

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, float]]:
        """Move, and inject the fault if it is due."""
        if self._seconds:
            time.sleep(self._seconds)
        self.position += action - 2
        self.count += 1
        arrived = self.position == self.task["goal"]
        observation: dict[str, Any] = self._observe()
        reward = float(arrived) + 0.01 * self.random.uniform()
        faulty = bool(self.fault) and self.count == self.at and self._may_fail()
        if faulty:
            observation, reward = self._inject(observation, reward)
        metrics = {"success": float(arrived), "jax": float("jax" in sys.modules)}
        if faulty and self.fault == "huge_metric":
            metrics["success"] = 1e300
        return observation, reward, arrived, self.count >= self.spec.horizon, metrics

    def expert(self) -> int:
        """Return the action towards the goal."""
        return int(np.clip(self.task["goal"] - self.position, -2, 2)) + 2

    def close(self) -> None:
        """Do nothing."""

    def _observe(self) -> dict[str, np.ndarray]:
        vector = np.array([self.position, self.task["goal"], self.random.uniform()], np.float32)
        return {"vector": vector, "image": np.full((4, 4, 3), self.position % 256, np.uint8)}

    def _may_fail(self) -> bool:
        """Return whether the fault may occur. Of several workers at the same time, one creates the file `once`."""
        with contextlib.suppress(FileExistsError):
            if self.once:
                open(self.once, "xb").close()
            return True
        return False

    def _inject(self, observation: dict[str, Any], reward: float) -> tuple[dict[str, Any], float]:
        if self.fault == "crash":
            with activity("loading scene 'corridor'"):
                os.kill(os.getpid(), signal.SIGSEGV)
        if self.fault == "exit":
            print("the simulator gave up", flush=True)
            os._exit(7)
        if self.fault == "slow":
            time.sleep(0.5)
        if self.fault == "hang":
            time.sleep(3600)
        if self.fault == "stuck":
            ctypes.PyDLL(None).sleep(3600)  # holds the GIL
        if self.fault == "raise":
            raise RuntimeError("the simulator raised")
        if self.fault == "print":
            os.write(1, b'{"op":"done","lane":0,"buffer":0}\n' * 1000)
        if self.fault == "shape":
            observation["vector"] = np.zeros(4, np.float32)
        if self.fault == "huge_vector":
            observation["vector"] = np.array([0.0, 1e300, 0.0])
        return observation, {"nan": float("nan"), "huge": 1e300}.get(self.fault, reward)
