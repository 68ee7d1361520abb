"""Environments in worker processes: the learner's view of one, an `Environment` that only a pool can step.

Observations have the form that the policy's encoder reads: a vector (float32 [D]), an image (uint8 [H, W, C]), or both
as {"image": …, "vector": …}. Several images are {"image": {name: …}, "vector": …}.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.bridge.gym.observations import assemble, tree
from relic_jax.bridge.pool import Batch, Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import Spec
from relic_jax.config import ConfigError, WorkerConfig
from relic_jax.environment.base import (
    ActionSpace,
    Box,
    Discrete,
    Environment,
    Image,
    MultiDiscrete,
    PyTree,
    Split,
    TimeStep,
    TrialRecord,
    first_timestep,
)

REFERENCE_EPISODES = 100
"""Episodes from which `reference_returns` estimates mean returns. Few, since simulators are slow."""


@dataclasses.dataclass(frozen=True, eq=False)
class HostEnvironment(Environment):
    """An environment in worker processes.

    `reset` returns placeholders of the right shapes and `step` is not defined: `HostTrials` steps the workers.

    Attributes:
        name: The environment's name in errors and results.
        entry: `module:function` that makes one environment in a worker (`PoolConfig`).
        options: Keyword arguments of `entry`, JSON values.
        spec: The spec that the workers must announce.
        splits: The tasks of each split, JSON values.
        image: Name of the observation that is the image. None: the images of the spec. All other observations are
            flattened into the vector, in the order of their names.
        per_worker: The largest number of environments in one process. None: no limit.
        host: Options of the workers.
        note: Further information for the description of the environment, such as the simulator's version.
    """

    name: str
    entry: str
    options: dict[str, Any]
    spec: Spec
    splits: dict[str, list[Any]]
    image: str | None = None
    per_worker: int | None = None
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    note: str = ""

    on_host = True
    ends_in_time = True  # workers truncate at the horizon

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """The longest episode, in steps."""
        return self.spec.horizon

    @property
    def reference_episodes(self) -> int:
        """`REFERENCE_EPISODES`."""
        return REFERENCE_EPISODES

    @property
    def images(self) -> tuple[str, ...]:
        """Sorted names of the observations that are images."""
        return tuple(sorted(self.spec.images)) if self.image is None else (self.image,)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the observations that form the vector, in their order there."""
        return tuple(name for name in sorted(self.spec.observation) if name not in self.images)

    def _size(self, name: str) -> int:
        return int(np.prod(self.spec.observation[name].shape))

    @property
    def observation_spec(self) -> PyTree:
        """A vector, an image, or a dictionary of both. Several images are a dictionary."""
        images = {name: Image(self.spec.observation[name].shape, jnp.uint8) for name in self.images}
        return tree(images, jax.ShapeDtypeStruct((sum(map(self._size, self.vectors)),), jnp.float32))

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """0 … 1 for zeros and ones, −1 … 1 for other numbers: workers scale those that are bounded."""
        if not self.spec.bits:
            return None
        low = [np.full(self._size(name), 0 if name in self.spec.bits else -1, np.float32) for name in self.vectors]
        shapes = {name: self.spec.observation[name].shape for name in self.images}
        ends = [(0, np.concatenate(low)), (255, np.ones(sum(map(len, low)), np.float32))]
        low_end, high_end = (
            tree({name: np.full(shape, end, np.uint8) for name, shape in shapes.items()}, vector)
            for end, vector in ends
        )
        return low_end, high_end

    @property
    def action_space(self) -> ActionSpace:
        """Discrete actions, one or several at a time, or vectors.

        Raises:
            ConfigError: If vectors are unbounded or not of rank 1.
        """
        return action_space_of(self.spec, self.name)

    @property
    def masks_actions(self) -> bool:  # type: ignore[override]
        """Whether the workers report legal actions."""
        return self.spec.masks

    @property
    def has_expert(self) -> bool:
        """Whether the workers have a scripted expert."""
        return self.spec.expert

    def tasks(self, split: Split) -> np.ndarray:
        """Return fingerprints of the tasks, uint8 [n, 16]. The hash of the split thus depends on their content."""
        return np.array([list(_fingerprint(task)) for task in self.splits[split]], np.uint8)

    def task(self, fingerprint: np.ndarray) -> Any:
        """Return the task of a row of `tasks`, a JSON value."""
        return self._by_fingerprint[tuple(fingerprint.tolist())]

    @functools.cached_property
    def _by_fingerprint(self) -> dict[tuple[int, ...], Any]:
        return {tuple(_fingerprint(task)): task for tasks in self.splits.values() for task in tasks}

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """Return the seed of a trial, int32 [], and a first TimeStep of zeros, until the pool resets the worker."""
        del task
        seed = (jax.random.bits(key) >> 1).astype(jnp.int32)
        observation = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), self.observation_spec)
        return seed, first_timestep(observation, jnp.ones(self.spec.mask_size, bool) if self.spec.masks else None)

    def observe(self, arrays: dict[str, np.ndarray]) -> PyTree:
        """Return a pool's observation arrays (leading axis b) in the form that the policy reads."""
        return assemble(arrays, self.images)

    def succeeded(self, batch: Batch) -> np.ndarray:
        """Return whether episodes succeeded, bool [b]: the metric `success`, or else a reward > 0.

        Only rows whose episode ended are meaningful.
        """
        if "success" in self.spec.metrics:
            return batch.metrics[:, self.spec.metrics.index("success")] > 0
        return batch.reward > 0

    def other_metrics(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return the metrics except `success`, float32 [b] by name. Only rows whose episode ended are meaningful."""
        names = enumerate(self.spec.metrics)
        return {name: batch.metrics[:, index] for index, name in names if name != "success"}

    def pool_config(self, environments: int, batch: int | None = None) -> PoolConfig:
        """Return the config of workers that hold `environments` environments together.

        Args:
            environments: Number of environments.
            batch: Number of environments in a group. None: half of the environments, or all if neither they nor the
                workers can be halved.

        Raises:
            ConfigError: If they cannot be divided among the workers, or into groups of this size.
        """
        host = self.host
        workers = min(host.workers, environments)
        each, rest = divmod(environments, workers)
        if rest:
            allowed = f"a divisor of the environments ({environments})"
            raise ConfigError(f"host.workers is {host.workers}; allowed: {allowed}")
        if self.per_worker is not None and each > self.per_worker:
            allowed = f"{-(-environments // self.per_worker)}: {self.per_worker} of {environments} environments in each"
            raise ConfigError(f"host.workers is {host.workers}; allowed: {allowed}")
        sizes = _group_sizes(workers, each)
        if batch is not None and batch not in sizes:
            raise ConfigError(f"host.batch is {batch}; allowed: None, {', '.join(map(str, sizes))}")
        half = environments // 2 if environments // 2 in sizes and environments % 2 == 0 else environments
        return PoolConfig(
            entry=self.entry,
            config=self.options,
            workers=workers,
            environments=each,
            groups=environments // (batch or half),
            python=host.python or sys.executable,
            start_timeout=host.start_timeout,
            step_timeout=host.step_timeout,
            max_restarts=host.max_restarts,
            ray=host.ray,
        )

    def start(self, environments: int, batch: int | None = None) -> Pool:
        """Start workers that hold `environments` environments together, in groups as in `pool_config`.

        Raises:
            ConfigError: If they cannot start. The message has one line.
        """
        try:
            return Pool(self.pool_config(environments, batch), self.spec)
        except PoolError as error:
            raise ConfigError(f"env {self.name!r} cannot start: {error}") from None

    def check_start(self, environments: int) -> None:
        """Raise ConfigError if `start` would, as far as a single worker shows it."""
        self.pool_config(environments, self.host.batch)
        self.start(1).close()

    def concurrent_trials(self, count: int) -> int:
        """Return how many of `count` trials the workers run at the same time."""
        workers = min(self.host.workers, count)
        each = -(-count // workers)
        return workers * (each if self.per_worker is None else min(each, self.per_worker))

    def render_trial(self, trial: TrialRecord) -> np.ndarray | None:
        """Return the policy's image observations side by side, uint8 [n, H, W, 3]. None without images."""
        if not self.images:
            return None
        observation = trial.observation
        images = observation["image"] if isinstance(observation, dict) else observation
        frames = [_to_rgb(x) for x in (images.values() if isinstance(images, dict) else [images])]
        height = max(x.shape[1] for x in frames)
        return np.concatenate([np.pad(x, ((0, 0), (0, height - x.shape[1]), (0, 0), (0, 0))) for x in frames], axis=2)


def _group_sizes(workers: int, each: int) -> list[int]:
    """Return the allowed sizes of groups of environments, in ascending order. See `PoolConfig.groups`."""
    total = workers * each
    return [total // groups for groups in range(total, 0, -1) if each % groups == 0 or workers % groups == 0]


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert [..., C] to [..., 3]: drop a fourth channel (depth); otherwise show the last channel in gray."""
    x = np.asarray(image)
    return x[..., :3] if x.shape[-1] in (3, 4) else np.repeat(x[..., -1:], 3, axis=-1)


def action_space_of(spec: Spec, name: str) -> ActionSpace:
    """Return the action space that workers announce.

    Args:
        spec: The spec of the workers.
        name: The environment's name, for errors.

    Raises:
        ConfigError: If actions are neither integers nor bounded vectors.
    """
    if spec.actions:
        return Discrete(spec.actions)
    if spec.nvec:
        return MultiDiscrete(spec.nvec)
    if len(spec.action.shape) != 1 or not spec.action.dtype.startswith("float"):
        raise ConfigError(f"env {name!r} has actions {spec.action}; allowed: integers, or vectors of floats")
    try:
        return Box((spec.low,) * spec.action.shape[0], (spec.high,) * spec.action.shape[0])
    except ValueError as error:
        raise ConfigError(f"env {name!r}: {error}") from None


def _fingerprint(task: Any) -> bytes:
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).digest()[:16]
