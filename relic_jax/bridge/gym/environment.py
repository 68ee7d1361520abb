"""Any gymnasium environment as a worker's environment. Python 3.8, numpy and gymnasium.

A task is a JSON object with any of

    seed          the seed of every reset of the trial; the draws of the environment from it are the task
    options       the options of every reset
    arguments     constructor arguments; the environment is made again when they change

Without `seed`, every episode has a different seed, derived from the seed of the trial. `observations` describes the
conversion of observations.
"""

from __future__ import annotations

import importlib
import math
import os
from typing import Any

import numpy as np

from relic_jax.bridge.gym import actions, minigrid
from relic_jax.bridge.gym.observations import Observations, SpaceError
from relic_jax.bridge.protocol import Spec
from relic_jax.bridge.worker import SetupError

PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid", "MiniWorld-": "miniworld", "ALE/": "ale_py"}
"""Packages that register ids on import, by prefix of the ids."""


class GymEnvironment:
    """A gymnasium environment.

    Args:
        id: As in `gymnasium.make`, including `module:id`.
        arguments: Constructor arguments; those of a task take precedence.
        horizon: Steps of the longest episode; None: the environment's time limit.
        metrics: Keys of `info` that are reported, as 0 if a step has none.
        package: A module that registers the id on import.
        restorable: See `protocol.Spec`.
        wrappers: Wrappers as MODULE:NAME, applied from left to right.
        text: See `Observations`.

    Raises:
        SetupError: The environment or a wrapper cannot be made, or has an unsupported space.
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
            os.environ.setdefault("PYGLET_HEADLESS", "1")  # Miniworld's pyglet then renders through EGL
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
            raise SetupError(f"{id!r} has no time limit; set horizon")
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
            except Exception as error:  # user code
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise SetupError(f"wrapper {name!r} does not accept {self._id!r} ({reason})") from None
            if not all(hasattr(env, part) for part in ("reset", "step", "unwrapped", "observation_space")):
                raise SetupError(f"wrapper {name!r} returns a {type(env).__name__}; allowed: a gymnasium.Env")
        return env

    def reset(self, task: Any, seed: int) -> dict[str, np.ndarray]:
        """Start an episode of a task."""
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
        """Take one step. An episode that reaches the horizon is truncated."""
        gym_action = actions.to_gym(self._env.action_space, action)
        observation, reward, terminated, truncated, self._info = self._env.step(gym_action)
        self._count += 1
        metrics = {name: float(self._info.get(name, 0.0)) for name in self.spec.metrics}
        ended = bool(truncated) or self._count >= self._limit
        return self._encode(observation), float(reward), bool(terminated), ended and not terminated, metrics

    def _gives_masks(self) -> bool:
        """Return whether `info` of a reset has a mask of legal actions."""
        try:
            return self._env.reset(seed=0)[1].get(actions.MASK) is not None
        except Exception:  # a reset can need the options of a task
            return False

    def legal(self) -> np.ndarray:
        """Return the mask that accompanies the newest observation. Only if `spec.masks`."""
        return actions.legal(self._env.action_space, self._info)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _observations(env: Any, text: str) -> Observations:
    """Return the encoder of an environment's observations. Raises SetupError if a space is not supported."""
    try:
        return Observations(env.observation_space, text, **minigrid.encoder_options(env))
    except SpaceError as error:
        raise SetupError(str(error)) from None


def _time_limit(env: Any) -> int | None:
    """Return the limit of gymnasium's TimeLimit, or the one that a MiniGrid or MiniWorld environment applies itself."""
    own = getattr(env.unwrapped, "max_episode_steps", None)  # MiniWorld's
    limit = getattr(env.spec, "max_episode_steps", None) or minigrid.time_limit(env)
    return limit or (int(own) if isinstance(own, (int, float)) and 0 < own < math.inf else None)


def load_wrapper(name: str) -> Any:
    """Return the wrapper MODULE:NAME, a function from environment to environment. Raises SetupError."""
    module, _, attribute = name.partition(":")
    allowed = "MODULE:NAME, a wrapper in a module that can be imported from the current folder"
    try:
        wrapper = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # user code can raise any error on import
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SetupError(f"wrapper is {name!r}; allowed: {allowed} ({reason})") from None
    if not callable(wrapper):
        raise SetupError(f"wrapper is {name!r}, a {type(wrapper).__name__}; allowed: {allowed}")
    return wrapper


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SetupError(f"package {package!r} is missing ({error}); pip install it for this interpreter") from None
