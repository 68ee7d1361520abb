"""Measure other vectorized environments around object navigation. Runs in the workers' interpreter, with the peers.

The peers are `gymnasium.vector.AsyncVectorEnv` with shared memory, and habitat-lab's `habitat.VectorEnv`, which
habitat-baselines uses for training. Both step all environments together, each in a separate process. Episodes do not
end during a measurement.
"""

from __future__ import annotations

import functools
import importlib
import time
from typing import Any

import numpy as np

from relic_jax.bridge.worker import episode_seed
from relic_jax.envs.habitat.worker import ExtObjNav
from relic_jax.experiments.benchmark.navigation import moves

PEERS = {"AsyncVectorEnv": "gymnasium", "VectorEnv": "habitat"}
"""The package of each peer."""


def version(peer: str) -> dict[str, str]:
    """Return {"version": version}, or {"missing": error} if the peer cannot be imported."""
    try:
        module = importlib.import_module(PEERS[peer])
    except Exception as error:  # habitat-lab does not only raise ImportError
        return {"missing": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return {"version": f"{PEERS[peer]} {getattr(module, '__version__', 'unknown')}"}


def measure(
    peer: str, options: dict[str, Any], task: dict[str, Any], environments: int, steps: int, rounds: int
) -> list[list[float]]:
    """Return the rounds [steps per second of all environments, final distance of the first] of a peer.

    Args:
        peer: One of `PEERS`.
        options: Options of `ExtObjNav`.
        task: The task of all environments.
        environments: Number of environments, each in a separate process.
        steps: Number of moves in a round.
        rounds: Number of rounds.
    """
    vector, step = (_gymnasium if peer == "AsyncVectorEnv" else _habitat)(options, task, environments)
    actions = np.array([moves(steps, index) for index in range(environments)]).T
    results = []
    for _ in range(rounds):
        vector.reset()
        start = time.perf_counter()
        for row in actions:
            distance = step(row)
        results.append([environments * steps / (time.perf_counter() - start), distance])
    vector.close()
    return results


def _gymnasium(options: dict[str, Any], task: dict[str, Any], environments: int) -> tuple[Any, Any]:
    """Return the peer, and a function that steps it and returns the first environment's distance."""
    gymnasium = importlib.import_module("gymnasium")

    class Env(gymnasium.Env):  # type: ignore[name-defined]
        """The environment with gymnasium's interface."""

        def __init__(self, index: int) -> None:
            self.env, self.index = ExtObjNav(**options), index
            self.observation_space, self.action_space = _spaces(gymnasium.spaces, self.env)

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
            """Start the same episode for every seed."""
            return self.env.reset(task, episode_seed(self.index, 0)), {}

        def step(self, action: Any) -> tuple[Any, ...]:
            """Take one step."""
            return self.env.step(int(action))

    vector = gymnasium.vector.AsyncVectorEnv(
        [functools.partial(Env, index) for index in range(environments)], shared_memory=True, context="fork"
    )
    return vector, lambda row: float(vector.step(row)[4]["distance"][0])


def _habitat(options: dict[str, Any], task: dict[str, Any], environments: int) -> tuple[Any, Any]:
    """Return the peer, and a function that steps it and returns the first environment's distance."""
    gym = importlib.import_module("gym")
    vector_env = importlib.import_module("habitat.core.vector_env")

    class Env(gym.Env):  # type: ignore[name-defined]
        """The environment with the interface of gym 0.23, which habitat-lab uses."""

        def __init__(self, index: int) -> None:
            self.env, self.index = ExtObjNav(**options), index
            self.observation_space, self.action_space = _spaces(gym.spaces, self.env)

        def reset(self, **_: Any) -> dict[str, Any]:
            """Start the same episode each time."""
            return self.env.reset(task, episode_seed(self.index, 0))

        def step(self, action: Any) -> tuple[Any, ...]:
            """Take one step."""
            observation, reward, terminated, truncated, metrics = self.env.step(int(action))
            return observation, reward, terminated or truncated, metrics

    vector = vector_env.VectorEnv(Env, [(index,) for index in range(environments)], multiprocessing_start_method="fork")

    def step(row: Any) -> float:
        observations, _, _, metrics = zip(*vector.step(list(row)))  # noqa: B905 (Python 3.8)
        for name in observations[0]:  # a policy needs a batch, which the other cases also build
            np.stack([observation[name] for observation in observations])
        return float(metrics[0]["distance"])

    return vector, step


def _spaces(spaces: Any, env: ExtObjNav) -> tuple[Any, Any]:
    """Return the spaces of observations and actions, from a module of spaces."""
    boxes = {}
    for name, spec in env.spec.observation.items():
        low, high = (0, 255) if spec.dtype == "uint8" else (-np.inf, np.inf)
        boxes[name] = spaces.Box(low, high, spec.shape, np.dtype(spec.dtype).type)
    return spaces.Dict(boxes), spaces.Discrete(env.spec.actions)
