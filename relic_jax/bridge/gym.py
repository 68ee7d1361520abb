"""Any gymnasium environment as a worker's environment. Worker side: Python 3.8, numpy, gymnasium.

A task is a JSON object with any of

    seed          the seed of every reset of the trial: what the environment draws from it is the task
    options       the options of every reset
    arguments     constructor arguments; the environment is made again where they change

Without `seed`, every episode is seeded differently (from the trial's seed).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.bridge.worker import SetupError


class GymEnvironment:
    """id: as for `gymnasium.make`, also `module:id`. arguments: of the constructor; a task's are put over them.

    horizon: steps of the longest episode; None: the environment's own limit. metrics: keys of `info` that are reported
    (0 where a step has none). package: a module that registers the id when it is imported.
    """

    def __init__(
        self,
        id: str,
        arguments: dict[str, Any] | None = None,
        horizon: int | None = None,
        metrics: tuple[str, ...] | list[str] = (),
        package: str = "",
        restorable: bool = True,
    ) -> None:
        gymnasium = _import("gymnasium")
        if "DISPLAY" not in os.environ:
            os.environ.setdefault("PYGLET_HEADLESS", "1")  # Miniworld's pyglet then draws through EGL
        if package:
            _import(package)
        self._make, self._id, self._base = gymnasium.make, id, dict(arguments or {})
        self._arguments: dict[str, Any] = {}
        self._wrap_around = horizon
        try:
            self._env = self._build({})
        except Exception as error:  # unknown ids, missing extras: gymnasium and its packages raise many kinds
            raise SetupError(f"gymnasium cannot make {id!r}: {' '.join(str(error).split())}") from None
        limit = horizon or getattr(self._env.spec, "max_episode_steps", None)
        if not limit:
            raise SetupError(f"{id!r} has no time limit of its own; set horizon")
        self._limit, self._count = limit, 0
        self.spec = Spec(
            name=id,
            observation=observation_spec(self._env.observation_space),
            metrics=tuple(metrics),
            horizon=int(limit),
            restorable=restorable,
            expert=False,
            **action_spec(self._env.action_space),
        )
        self.versions = {"gymnasium": gymnasium.__version__}
        if package:
            self.versions[package] = str(getattr(_import(package), "__version__", "unknown"))

    def _build(self, arguments: dict[str, Any]) -> Any:
        return self._make(self._id, **{**self._base, **arguments})

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """Starts an episode of a task."""
        task = task or {}
        arguments = task.get("arguments", {})
        if arguments != self._arguments:
            self._env.close()
            self._env, self._arguments = self._build(arguments), arguments
        observation, _ = self._env.reset(seed=int(task.get("seed", seed)), options=task.get("options"))
        self._count = 0
        return flat(observation)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """One step. An episode that reaches the horizon is truncated."""
        observation, reward, terminated, truncated, info = self._env.step(self._translated(action))
        self._count += 1
        metrics = {name: float(info.get(name, 0.0)) for name in self.spec.metrics}
        return flat(observation), float(reward), bool(terminated), truncated or self._count >= self._limit, metrics

    def _translated(self, action: Any) -> Any:
        """What we announce is one range for all components; here are the environment's own bounds and shape again."""
        space = self._env.action_space
        if self.spec.actions:
            return action
        own = np.reshape(action, space.shape)
        if not one_range(space):
            own = np.clip(space.low + (own + 1) * 0.5 * (space.high - space.low), space.low, space.high)
        return own.astype(space.dtype)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def flat(observation: Any) -> dict[str, np.ndarray]:
    """An observation as {name: array}; one that is no dictionary is called "observation"."""
    if isinstance(observation, dict):
        return {str(name): np.asarray(value) for name, value in observation.items()}
    return {"observation": np.asarray(observation)}


def observation_spec(space: Any) -> dict[str, ArraySpec]:
    """Arrays of a Box, Discrete, MultiDiscrete or MultiBinary space, or of a Dict of them. Raises SetupError."""
    parts = dict(space.spaces) if hasattr(space, "spaces") and hasattr(space, "keys") else {"observation": space}
    found = {}
    for name, part in parts.items():
        if getattr(part, "dtype", None) is None or part.shape is None:
            raise SetupError(f"observation space {part} is not an array, nor a dictionary of arrays")
        found[str(name)] = ArraySpec(np.dtype(part.dtype).name, tuple(part.shape))
    return found


def action_spec(space: Any) -> dict[str, Any]:
    """The part of a `Spec` about actions, for a Discrete space or a Box of finite floats. Raises SetupError.

    A Box is announced as a vector; with bounds that differ between components, as one in [-1, 1].
    """
    if hasattr(space, "n") and not getattr(space, "shape", ()) and int(getattr(space, "start", 0)) == 0:
        return {"action": ArraySpec("int32", ()), "actions": int(space.n), "low": 0.0, "high": 0.0}
    if hasattr(space, "low") and space.dtype.kind == "f" and np.isfinite([space.low, space.high]).all():
        low, high = (float(np.min(space.low)), float(np.max(space.high))) if one_range(space) else (-1.0, 1.0)
        return {"action": ArraySpec("float32", (int(space.low.size),)), "actions": 0, "low": low, "high": high}
    raise SetupError(f"action space {space} is neither discrete from 0, nor a box of floats with finite bounds")


def one_range(box: Any) -> bool:
    """Whether all components of a Box have the same bounds."""
    return bool(np.ptp(box.low) == 0 and np.ptp(box.high) == 0)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SetupError(f"package {package!r} is missing ({error}); pip install it for this interpreter") from None
