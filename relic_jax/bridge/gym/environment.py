"""Any gymnasium environment as a worker's environment. Worker side: Python 3.8, numpy, gymnasium.

A task is a JSON object with any of

    seed          the seed of every reset of the trial: what the environment draws from it is the task
    options       the options of every reset
    arguments     constructor arguments; the environment is made again where they change

Without `seed`, every episode is seeded differently (from the trial's seed). What observations become: `observations`.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from relic_jax.bridge.gym import actions, minigrid
from relic_jax.bridge.gym.observations import Observations, SpaceError
from relic_jax.bridge.protocol import Spec
from relic_jax.bridge.worker import SetupError

PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "MiniWorld-": "miniworld", "ALE/": "ale_py"}
"""Packages that register ids when they are imported, by how the ids begin."""


class GymEnvironment:
    """id: as for `gymnasium.make`, also `module:id`. arguments: of the constructor; a task's are put over them.

    horizon: steps of the longest episode; None: the environment's own limit. metrics: keys of `info` that are reported
    (0 where a step has none). package: a module that registers the id when it is imported. wrappers: MODULE:NAME each,
    put around the environment from left to right. text: see `Observations`.
    """

    def __init__(
        self,
        id: str,
        arguments: dict[str, Any] | None = None,
        horizon: int | None = None,
        metrics: tuple[str, ...] | list[str] = (),
        package: str = "",
        restorable: bool = True,
        wrappers: tuple[str, ...] | list[str] = (),
        text: str = "omit",
    ) -> None:
        gymnasium = _import("gymnasium")
        if "DISPLAY" not in os.environ:
            os.environ.setdefault("PYGLET_HEADLESS", "1")  # Miniworld's pyglet then draws through EGL
        package = package or next((name for start, name in PACKAGES.items() if id.startswith(start)), "")
        if package:
            _import(package)
        self._make, self._id, self._base = gymnasium.make, id, dict(arguments or {})
        self._wrappers = [(name, load_wrapper(name)) for name in wrappers]
        self._arguments: dict[str, Any] = {}
        try:
            self._env = self._build({})
        except SetupError:
            raise
        except Exception as error:  # unknown ids, missing extras: gymnasium and its packages raise many kinds
            raise SetupError(f"gymnasium cannot make {id!r}: {' '.join(str(error).split())}") from None
        limit = horizon or _time_limit(self._env)
        if not limit:
            raise SetupError(f"{id!r} has no time limit of its own; set horizon")
        self._limit, self._count = limit, 0
        self._encode = _observations(self._env, text)
        action = actions.action_spec(self._env.action_space)
        self._info: dict[str, Any] = {}
        self.spec = Spec(
            name=id,
            observation=self._encode.specs,
            metrics=tuple(metrics),
            horizon=int(limit),
            restorable=restorable,
            expert=False,
            images=self._encode.images,
            bits=self._encode.bits,
            left_out=self._encode.left_out,
            masks=(action["actions"] > 0 or "nvec" in action) and self._gives_masks(),
            **action,
        )
        self.versions = {"gymnasium": gymnasium.__version__}
        if package:
            self.versions[package] = str(getattr(_import(package), "__version__", "unknown"))

    def _build(self, arguments: dict[str, Any]) -> Any:
        env = self._make(self._id, **{**self._base, **arguments})
        for name, wrapper in self._wrappers:
            try:
                env = wrapper(env)
            except Exception as error:  # it is the user's own
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise SetupError(f"wrapper {name!r} does not take {self._id!r} ({reason})") from None
            if not all(hasattr(env, part) for part in ("reset", "step", "unwrapped", "observation_space")):
                raise SetupError(f"wrapper {name!r} returns a {type(env).__name__}; allowed: a gymnasium.Env")
        return env

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """Starts an episode of a task."""
        task = task or {}
        arguments = task.get("arguments", {})
        if arguments != self._arguments:
            self._env.close()
            self._env, self._arguments = self._build(arguments), arguments
        seed = int(task.get("seed", seed))
        observation, self._info = self._env.reset(seed=seed, options=task.get("options"))
        self._count = 0
        return self._encode(observation)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """One step. An episode that reaches the horizon is truncated."""
        own = actions.translated(self._env.action_space, action)
        observation, reward, terminated, truncated, self._info = self._env.step(own)
        self._count += 1
        metrics = {name: float(self._info.get(name, 0.0)) for name in self.spec.metrics}
        over = bool(truncated) or self._count >= self._limit
        return self._encode(observation), float(reward), bool(terminated), over and not terminated, metrics

    def _gives_masks(self) -> bool:
        """Whether there is a mask of legal actions in what comes with a reset."""
        try:
            return self._env.reset(seed=0)[1].get(actions.MASK) is not None
        except Exception:  # one that cannot be reset without a task's options
            return False

    def legal(self) -> np.ndarray:
        """The mask that came with the newest observation; where `spec.masks`."""
        return actions.legal(self._env.action_space, self._info)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def _observations(env: Any, text: str) -> Observations:
    """The encoder of an environment's observations. Raises SetupError."""
    try:
        return Observations(env.observation_space, text, **minigrid.meaning(env))
    except SpaceError as error:
        raise SetupError(str(error)) from None


def _time_limit(env: Any) -> int | None:
    """gymnasium's, or one that the environment keeps itself as MiniGrid's do."""
    return getattr(env.spec, "max_episode_steps", None) or minigrid.time_limit(env)


def load_wrapper(name: str) -> Any:
    """The wrapper behind MODULE:NAME, anything that takes an environment and returns one. Raises SetupError."""
    module, _, attribute = name.partition(":")
    allowed = "MODULE:NAME, a wrapper in a module that can be imported from the current folder"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's own may raise anything when it is imported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SetupError(f"wrapper is {name!r}; allowed: {allowed} ({reason})") from None
    if not callable(found):
        raise SetupError(f"wrapper is {name!r}, a {type(found).__name__}; allowed: {allowed}")
    return found


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SetupError(f"package {package!r} is missing ({error}); pip install it for this interpreter") from None
