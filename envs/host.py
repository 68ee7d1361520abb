"""Environments that live in worker processes: the learner's view of one, as an `Environment` that only a pool can step.

Its observations are what the policy's encoder knows: one vector, or {"image": uint8 [H, W, 3], "vector": float32 [D]}.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Discrete, Environment, PyTree, Split, TimeStep, first_timestep
from relic_jax.bridge.pool import Batch, Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import Spec
from relic_jax.config import ConfigError, HostConfig


@dataclasses.dataclass(frozen=True, eq=False)
class HostEnvironment(Environment):
    """entry, options: what makes it in a worker (`PoolConfig`). spec: what the workers must announce.

    splits: the tasks by split, JSON values. image: which observation is the image; the others are flattened into the
    vector, in the order of their names. configure: how a `HostConfig` changes it. check: run before training.
    """

    name: str
    entry: str
    options: dict[str, Any]
    spec: Spec
    splits: dict[str, list[Any]]
    image: str | None = None
    host: HostConfig = dataclasses.field(default_factory=HostConfig)
    configure: Callable[[HostConfig], HostEnvironment] | None = None

    may_fail = True

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """Steps of the longest episode."""
        return self.spec.horizon

    @property
    def observation_spec(self) -> PyTree:
        """A vector, or an image and a vector."""
        parts = (spec.shape for name, spec in self.spec.observation.items() if name != self.image)
        vector = jax.ShapeDtypeStruct((sum(int(np.prod(shape)) for shape in parts),), jnp.float32)
        if self.image is None:
            return vector
        return {"image": jax.ShapeDtypeStruct(self.spec.observation[self.image].shape, jnp.uint8), "vector": vector}

    @property
    def action_space(self) -> Discrete:
        """The discrete actions. Raises ConfigError where they are continuous."""
        if not self.spec.actions:
            raise ConfigError(f"env {self.name!r} has continuous actions; allowed: discrete ones, so far")
        return Discrete(self.spec.actions)

    @property
    def has_expert(self) -> bool:
        """Whether the workers have a scripted expert."""
        return self.spec.expert

    def tasks(self, split: Split) -> np.ndarray:
        """Fingerprints of the tasks, uint8 [n, 16]: the split's hash then depends on what is in them."""
        digests = [hashlib.sha256(json.dumps(task, sort_keys=True).encode()).digest() for task in self.splits[split]]
        return np.array([list(digest[:16]) for digest in digests], np.uint8)

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """The shapes of a first TimeStep, all zeros: what a training state is laid out with before the pool's reset."""
        del key, task
        return (), first_timestep(jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), self.observation_spec))

    def observe(self, arrays: dict[str, np.ndarray]) -> PyTree:
        """A pool's observation arrays (leading axis b) as the policy reads them."""
        parts = [value.reshape(len(value), -1) for name, value in sorted(arrays.items()) if name != self.image]
        count = len(next(iter(arrays.values())))
        vector = np.concatenate([np.zeros((count, 0)), *parts], 1, dtype=np.float32, casting="unsafe")
        return vector if self.image is None else {"image": arrays[self.image], "vector": vector}

    def succeeded(self, batch: Batch) -> np.ndarray:
        """bool [b]; meaningful where an episode ended. The metric of that name, or a reward at the end."""
        if "success" in self.spec.metrics:
            return batch.metrics[:, self.spec.metrics.index("success")] > 0
        return batch.reward > 0

    def start(self, environments: int) -> Pool:
        """Starts workers with `environments` environments in all. Raises ConfigError: one line, before training."""
        host = self.host
        workers = min(host.workers, environments)
        if environments % workers:
            raise ConfigError(
                f"host.workers is {host.workers}; allowed: a divisor of the environments ({environments})"
            )
        each = environments // workers
        config = PoolConfig(
            entry=self.entry,
            config=self.options,
            workers=workers,
            environments=each,
            groups=2 if each % 2 == 0 or workers % 2 == 0 else 1,
            python=host.python or sys.executable,
            start_timeout=host.start_timeout,
            step_timeout=host.step_timeout,
            max_restarts=host.max_restarts,
        )
        try:
            return Pool(config, self.spec)
        except PoolError as error:
            raise ConfigError(f"env {self.name!r} cannot start: {error}") from None

    def render_trial(self, trajectory: Any) -> np.ndarray | None:
        """The images that the policy saw."""
        return None if self.image is None else np.asarray(trajectory.observation["image"])
