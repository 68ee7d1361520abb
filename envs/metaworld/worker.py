"""Meta-World's benchmarks ML1, ML10 and ML45 as a worker's environment (Yu et al. 2019, arXiv 1910.10897).

A task is {"split": "train" or "test", "env": name, "index": number}: a manipulation task and one of its 50 arrangements
in the benchmark. As usual in these benchmarks, the goal is not observed. The expert is Meta-World's scripted policy,
which knows the goal. Needs numpy and metaworld.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from typing import Any

import numpy as np

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.bridge.worker import SetupError

VERSION = "3.1.1"
"""The supported version. Rewards and arrangements of other versions can differ."""
BENCHMARKS = ("ml1", "ml10", "ml45")
HORIZON = 500


def benchmark(id: str) -> Any:
    """Return the benchmark `ml1:ENV`, `ml10` or `ml45`, the same in every process. Raises SetupError."""
    try:
        metaworld = importlib.import_module("metaworld")
    except ImportError as error:
        interpreter = f"{sys.executable} (Python {platform.python_version()})"
        raise SetupError(
            f"{interpreter} has no metaworld ({error}); pip install metaworld=={VERSION} packaging"
        ) from None
    version = importlib.metadata.version("metaworld")
    if version != VERSION:
        raise SetupError(f"metaworld is {version}; allowed: {VERSION}, pip install metaworld=={VERSION}")
    kind, _, env = id.partition(":")
    if kind not in BENCHMARKS or (kind == "ml1") != bool(env):
        raise SetupError(f"benchmark is {id!r}; allowed: ml1:ENV (such as ml1:reach-v3), ml10, ml45")
    if kind != "ml1":
        return getattr(metaworld, kind.upper())(seed=0)
    if env not in metaworld.ML1.ENV_NAMES:
        raise SetupError(f"environment is {env!r}; allowed: {', '.join(sorted(metaworld.ML1.ENV_NAMES))}")
    return metaworld.ML1(env, seed=0)


def survey(id: str) -> dict[str, Any]:
    """Return the tasks of both splits. Raises SetupError if there is no such benchmark."""
    tasks_of = benchmark(id)
    splits: dict[str, list[Any]] = {}
    for split, tasks in (("train", tasks_of.train_tasks), ("test", tasks_of.test_tasks)):
        counts: dict[str, int] = {}
        splits[split] = []
        for task in tasks:
            index = counts.setdefault(task.env_name, 0)
            counts[task.env_name] += 1
            splits[split].append({"split": split, "env": task.env_name, "index": index})
    return splits


class MetaWorld:
    """A benchmark of Meta-World.

    Args:
        id: See `benchmark`.
        horizon: Steps of an episode, at most 500; None: 500.

    Raises:
        SetupError: There is no such benchmark, or the horizon is not allowed.
    """

    def __init__(self, id: str, horizon: int | None = None) -> None:
        if horizon is not None and not 0 < horizon <= HORIZON:
            raise SetupError(f"horizon is {horizon}; allowed: 1 … {HORIZON}")
        self._benchmark = benchmark(id)
        self._policies = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
        self._envs: dict[str, Any] = {}
        self._env: Any = None
        self._task: Any = None
        self._observation = np.zeros(0)
        self._count = 0
        self.versions = {"metaworld": VERSION}
        self.spec = Spec(
            name=f"metaworld:{id}",
            observation={"observation": ArraySpec("float32", (39,))},
            action=ArraySpec("float32", (4,)),
            actions=0,
            low=-1.0,
            high=1.0,
            metrics=("success",),
            horizon=horizon or HORIZON,
            restorable=True,
            expert=True,
        )

    def reset(self, task: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
        """Start an episode with the arrangement of the task."""
        if task != self._task:
            self._set(task)
        self._observation, _ = self._env.reset(seed=seed)
        self._count = 0
        return {"observation": self._observation.astype(np.float32)}

    def _set(self, task: dict[str, Any]) -> None:
        suite, name, split = self._benchmark, task["env"], task["split"]
        classes, tasks = (
            (suite.train_classes, suite.train_tasks) if split == "train" else (suite.test_classes, suite.test_tasks)
        )
        if name not in self._envs:
            self._envs[name] = classes[name]()
        self._env = self._envs[name]
        self._env.set_task([entry for entry in tasks if entry.env_name == name][task["index"]])
        self._policy, self._task = self._policies[name](), task

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, float]]:
        """Take one step. Success does not end the episode."""
        self._observation, reward, terminated, truncated, info = self._env.step(action)
        self._count += 1
        truncated = (bool(truncated) or self._count >= self.spec.horizon) and not terminated
        metrics = {"success": float(info["success"])}
        return (
            {"observation": self._observation.astype(np.float32)},
            float(reward),
            bool(terminated),
            truncated,
            metrics,
        )

    def expert(self) -> np.ndarray:
        """Return the action of Meta-World's scripted policy, which observes the goal."""
        observation = np.concatenate([self._observation[:-3], self._env._target_pos])
        return np.clip(self._policy.get_action(observation), -1, 1).astype(np.float32)

    def close(self) -> None:
        """Close the simulators."""
        for env in self._envs.values():
            env.close()


def make(**options: Any) -> MetaWorld:
    """Make the environment. Entry of the worker."""
    return MetaWorld(**options)
