"""Environments that live in worker processes: the learner's view of one, as an `Environment` that only a pool can step.

Its observations are what the policy's encoder knows: a vector (float32 [D]), an image (uint8 [H, W, C]), or both as
{"image": …, "vector": …}; several images are {"image": {name: …}, "vector": …}.
`HostTrials` is for them what `Trials` is for environments inside jit; its arrays are numpy's.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.bridge.gym.observations import assembled, tree
from relic_jax.bridge.pool import Batch, Pool, PoolConfig, PoolError
from relic_jax.bridge.protocol import Spec
from relic_jax.config import ConfigError, HostConfig
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
    first_timestep,
)
from relic_jax.environment.trials import TrialState, TrialStep

REFERENCE_EPISODES = 100  # simulators are slow: the random and the optimal line are estimated from that many episodes


@dataclasses.dataclass(frozen=True, eq=False)
class HostEnvironment(Environment):
    """entry, options: what makes it in a worker (`PoolConfig`). spec: what the workers must announce.

    splits: the tasks by split, JSON values. image: which observation is the image; None: those that the spec says are.
    The others are flattened into the vector, in the order of their names. per_worker: how many of them fit into one
    process, None: any number. note: what else there is to know, such as the version of what simulates.
    """

    name: str
    entry: str
    options: dict[str, Any]
    spec: Spec
    splits: dict[str, list[Any]]
    image: str | None = None
    per_worker: int | None = None
    host: HostConfig = dataclasses.field(default_factory=HostConfig)
    note: str = ""

    may_fail = True
    ends_in_time = True  # workers truncate at the horizon

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """Steps of the longest episode."""
        return self.spec.horizon

    @property
    def reference_episodes(self) -> int:
        """Few, see `REFERENCE_EPISODES`."""
        return REFERENCE_EPISODES

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the observations that are images, sorted."""
        return tuple(sorted(self.spec.images)) if self.image is None else (self.image,)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the observations that make the vector, in their order there."""
        return tuple(name for name in sorted(self.spec.observation) if name not in self.images)

    def _size(self, name: str) -> int:
        return int(np.prod(self.spec.observation[name].shape))

    @property
    def observation_spec(self) -> PyTree:
        """A vector, an image, or both; of several images a dictionary."""
        images = {name: Image(self.spec.observation[name].shape, jnp.uint8) for name in self.images}
        return tree(images, jax.ShapeDtypeStruct((sum(map(self._size, self.vectors)),), jnp.float32))

    @property
    def observation_range(self) -> tuple[PyTree, PyTree] | None:
        """0 … 1 for what is zeros and ones, −1 … 1 for other numbers, which workers scale where they are bounded."""
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

        Raises ConfigError where these are unbounded or of another shape.
        """
        return action_space_of(self.spec, self.name)

    @property
    def masks_actions(self) -> bool:  # type: ignore[override]
        """Whether the workers say which actions are legal."""
        return self.spec.masks

    @property
    def has_expert(self) -> bool:
        """Whether the workers have a scripted expert."""
        return self.spec.expert

    def tasks(self, split: Split) -> np.ndarray:
        """Fingerprints of the tasks, uint8 [n, 16]: the split's hash then depends on what is in them."""
        return np.array([list(_fingerprint(task)) for task in self.splits[split]], np.uint8)

    def task(self, fingerprint: np.ndarray) -> Any:
        """The task behind a row of `tasks`, a JSON value."""
        return self._by_fingerprint[tuple(fingerprint.tolist())]

    @functools.cached_property
    def _by_fingerprint(self) -> dict[tuple[int, ...], Any]:
        return {tuple(_fingerprint(task)): task for tasks in self.splits.values() for task in tasks}

    def reset(self, key: jax.Array, task: PyTree) -> tuple[PyTree, TimeStep]:
        """(the seed of a trial, int32 []; a first TimeStep of the right shapes, all zeros, until the pool's reset)."""
        del task
        seed = (jax.random.bits(key) >> 1).astype(jnp.int32)
        observation = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), self.observation_spec)
        return seed, first_timestep(observation, jnp.ones(self.spec.mask_size, bool) if self.spec.masks else None)

    def observe(self, arrays: dict[str, np.ndarray]) -> PyTree:
        """A pool's observation arrays (leading axis b) as the policy reads them."""
        return assembled(arrays, self.images)

    def succeeded(self, batch: Batch) -> np.ndarray:
        """bool [b]; meaningful where an episode ended. The metric of that name, or a reward at the end."""
        if "success" in self.spec.metrics:
            return batch.metrics[:, self.spec.metrics.index("success")] > 0
        return batch.reward > 0

    def others(self, batch: Batch) -> dict[str, np.ndarray]:
        """float32 [b] by name: the metrics but success, which `succeeded` tells; meaningful where an episode ended."""
        names = enumerate(self.spec.metrics)
        return {name: batch.metrics[:, index] for index, name in names if name != "success"}

    def pool_config(self, environments: int) -> PoolConfig:
        """Workers with `environments` environments in all. Raises ConfigError where they cannot be spread so."""
        host = self.host
        workers = min(host.workers, environments)
        each, rest = divmod(environments, workers)
        if rest:
            allowed = f"a divisor of the environments ({environments})"
            raise ConfigError(f"host.workers is {host.workers}; allowed: {allowed}")
        if self.per_worker is not None and each > self.per_worker:
            allowed = f"{-(-environments // self.per_worker)}: {self.per_worker} of {environments} environments in each"
            raise ConfigError(f"host.workers is {host.workers}; allowed: {allowed}")
        return PoolConfig(
            entry=self.entry,
            config=self.options,
            workers=workers,
            environments=each,
            groups=2 if each % 2 == 0 or workers % 2 == 0 else 1,
            python=host.python or sys.executable,
            start_timeout=host.start_timeout,
            step_timeout=host.step_timeout,
            max_restarts=host.max_restarts,
            ray=host.ray,
        )

    def start(self, environments: int) -> Pool:
        """Starts workers with `environments` environments in all. Raises ConfigError: one line, before training."""
        try:
            return Pool(self.pool_config(environments), self.spec)
        except PoolError as error:
            raise ConfigError(f"env {self.name!r} cannot start: {error}") from None

    def check(self, environments: int) -> None:
        """Raises ConfigError where `start` would, as far as a single worker shows it."""
        self.pool_config(environments)
        self.start(1).close()

    def render_trial(self, trial: Any) -> np.ndarray | None:
        """The images that the policy saw, side by side: uint8 [n, H, W, 3]."""
        if not self.images:
            return None
        seen = trial.observation
        images = seen["image"] if isinstance(seen, dict) else seen
        frames = [_coloured(x) for x in (images.values() if isinstance(images, dict) else [images])]
        height = max(x.shape[1] for x in frames)
        return np.concatenate([np.pad(x, ((0, 0), (0, height - x.shape[1]), (0, 0), (0, 0))) for x in frames], axis=2)


def _coloured(image: np.ndarray) -> np.ndarray:
    """[..., C] → [..., 3]: colours without a fourth channel (depth); of other numbers of channels the last, in gray."""
    x = np.asarray(image)
    return x[..., :3] if x.shape[-1] in (3, 4) else np.repeat(x[..., -1:], 3, axis=-1)


def action_space_of(spec: Spec, name: str) -> ActionSpace:
    """The actions that workers announce. name: of the environment, for errors. Raises ConfigError."""
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


class GroupStep(NamedTuple):
    """A step of one group (b environments). before: the trials that the policy acted in. step: what it led to; a lost
    step (not `batch.valid`) ends the episode, and what it earned is unknown.
    """

    group: int
    before: TrialState
    batch: Batch
    step: TrialStep


class HostTrials:
    """The environments of a pool in trials, group by group. trials: one TrialState of numpy arrays per group.

    A TrialState's `env` is the trial's seed, its `task` the task's fingerprint.
    """

    def __init__(self, env: HostEnvironment, pool: Pool, show_last_reward: bool = False) -> None:
        self.env, self.pool, self.show_last_reward = env, pool, show_last_reward
        numbers = [pool.group(index) for index in range(pool.config.groups)]
        self.rows = [slice(int(n[0]), int(n[-1]) + 1) for n in numbers]
        self.trials: list[TrialState] = []

    @property
    def all(self) -> TrialState:
        """The trials of all groups as one."""
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self.trials)

    def begin(self, tasks: np.ndarray, seeds: np.ndarray) -> None:
        """Starts trials. tasks: fingerprints, uint8 [B, 16]. seeds: int32 [B]. Raises PoolError."""
        batch = self.pool.reset([self.env.task(row) for row in tasks], seeds.tolist())
        nothing, actions = np.zeros(len(seeds), np.float32), self.env.action_space
        none = np.full((len(seeds), *actions.shape), actions.null_action, actions.dtype)
        arrays: Any = (none, nothing, np.ones(len(seeds), bool), nothing, batch.legal)
        self._split(TrialState(seeds, tasks, self.env.observe(batch.observation), *arrays))

    def resume(self, trial: TrialState, episodes: np.ndarray, replay: Sequence[np.ndarray]) -> np.ndarray:
        """Goes on with trials of another pool, see `Pool.reset`. Raises PoolError.

        Returns bool [B]: which of them are where they were. In the others the running episode is given up for the next.
        """
        tasks: list[Any] = [self.env.task(row) for row in np.asarray(trial.task)]

        def reset(episodes: np.ndarray, replay: list[list[Any]]) -> tuple[tuple[PyTree, Any], np.ndarray]:
            batch = self.pool.reset(tasks, trial.env.tolist(), episodes.tolist(), replay)
            return (self.env.observe(batch.observation), batch.legal), batch.valid

        actions = [row.tolist() for row in replay]
        seen, valid = reset(episodes, actions)
        pairs = zip(jax.tree.leaves(seen), jax.tree.leaves((trial.observation, trial.legal)), strict=True)
        equal = [(a == b).reshape(len(tasks), -1).all(1) for a, b in pairs]
        same = trial.first | np.all([*equal, valid], axis=0)
        if not same.all():
            kept = [row if ok else [] for row, ok in zip(actions, same, strict=True)]
            seen, _ = reset(episodes + ~same, kept)
        changes: dict[str, Any] = {
            "observation": seen[0],
            "legal": seen[1],
            "previous_action": self._previous(~same, np.asarray(trial.previous_action)),
            "previous_reward": np.where(same, trial.previous_reward, 0).astype(np.float32),
            "first": trial.first | ~same,
            "episode_return": np.where(same, trial.episode_return, 0).astype(np.float32),
        }
        self._split(dataclasses.replace(trial, **changes))
        return same

    def _split(self, trial: TrialState) -> None:
        self.trials = [jax.tree.map(lambda x, rows=rows: x[rows], trial) for rows in self.rows]

    def run(
        self,
        act: Callable[[int, int, TrialState], np.ndarray],
        steps: int | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[GroupStep]:
        """Steps all groups by turns, each while the others are simulated: `steps` times, or until `enough`.

        act(group, index of the step, trials) gives actions in the environment's units, [b, ...];
        `ActionSpace.expert_mark`: the expert acts. Raises PoolError.
        """
        index, over = 0, False
        while not over:
            over = index == steps or enough()
            for group in range(len(self.rows)):
                if index:
                    yield self._receive(group)
                if not over:
                    self.pool.send(act(group, index, self.trials[group]), group)
            index += 1

    def _previous(self, first: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The previous action as the policy reads it. first: bool [b], where there is none."""
        actions = self.env.action_space
        return per_row(first, np.full_like(action, actions.null_action), action).astype(actions.dtype)

    def _receive(self, group: int) -> GroupStep:
        """`relic_jax.environment.trials.Trials.step`, with what the pool answered."""
        before, batch = self.trials[group], self.pool.receive(group)
        ended = batch.terminated | batch.truncated
        episode_return = before.episode_return + batch.reward
        changes: dict[str, Any] = {
            "observation": self.env.observe(batch.observation),
            "legal": batch.legal,
            "previous_action": self._previous(ended, self.env.action_space.from_env(batch.acted)),
            "previous_reward": np.where(ended & (not self.show_last_reward), 0, batch.reward).astype(np.float32),
            "first": ended,
            "episode_return": np.where(ended, 0, episode_return).astype(np.float32),
        }
        self.trials[group] = dataclasses.replace(before, **changes)
        arrays: Any = (batch.reward, batch.terminated, batch.truncated)
        more: Any = (None, episode_return, self.env.succeeded(batch), self.env.others(batch))
        return GroupStep(group, before, batch, TrialStep(*arrays, *more))


def wave_size(env: HostEnvironment, count: int) -> int:
    """How many of `count` trials the workers play at a time."""
    workers = min(env.host.workers, count)
    each = -(-count // workers)
    return workers * (each if env.per_worker is None else min(each, env.per_worker))


def waves(env: HostEnvironment, count: int, show_last_reward: bool = False) -> Iterator[tuple[HostTrials, np.ndarray]]:
    """For `count` trials, as many at a time as the workers hold: yields (trials, numbers of the trials: int32 [b]).

    The last numbers of the last wave are repeated where its environments are more. Raises ConfigError.
    """
    size = wave_size(env, count)
    with env.start(size) as pool:
        trials = HostTrials(env, pool, show_last_reward)
        for start in range(0, count, size):
            yield trials, np.minimum(np.arange(start, start + size), count - 1)


def per_row(condition: np.ndarray, on_true: np.ndarray, on_false: np.ndarray) -> np.ndarray:
    """Per-environment choice between two arrays with leading axis b. condition: bool [b]."""
    return np.where(condition.reshape(-1, *(1,) * (on_true.ndim - 1)), on_true, on_false)


class EpisodeCount:
    """Counts the episodes of a wave's environments that ended and were seen whole. ended: int [B]."""

    def __init__(self, trials: HostTrials, episodes: int) -> None:
        self._trials, self._episodes = trials, episodes
        self.ended = np.zeros(trials.pool.config.total, int)

    def add(self, happened: GroupStep) -> np.ndarray:
        """Returns bool [b]: where an episode ended now. Raises PoolError where a trial cannot be played to its end."""
        if self._trials.pool.dropped:
            raise PoolError(f"env {self._trials.env.name!r}: a trial was lost, its task cannot be set up again")
        batch = happened.batch
        ended = (batch.terminated | batch.truncated) & batch.valid
        self.ended[self._trials.rows[happened.group]] += ended
        return ended

    def enough(self) -> bool:
        """Whether every environment has played its episodes."""
        return bool((self.ended >= self._episodes).all())


def mean_line(env: HostEnvironment, tasks: np.ndarray, episodes: int, expert: bool, seed: int) -> tuple[float, float]:
    """(mean return, share of successes) of the expert or of uniformly random actions, each task `episodes` times.

    tasks: fingerprints, uint8 [n, 16]. Raises ConfigError, PoolError.
    """
    random = np.random.default_rng(seed)
    returns = np.zeros((len(tasks), episodes))
    successes = np.zeros((len(tasks), episodes), bool)

    def act(group: int, index: int, trial: TrialState) -> np.ndarray:
        count, actions = len(trial.first), env.action_space
        if expert:
            return np.full((count, *actions.shape), actions.expert_mark)
        return actions.draw(random, count, None if trial.legal is None else np.asarray(trial.legal))

    for trials, numbers in waves(env, len(tasks)):
        count = EpisodeCount(trials, episodes)
        trials.begin(tasks[numbers], random.integers(2**31, size=len(numbers)))
        for happened in trials.run(act, enough=count.enough):
            rows = trials.rows[happened.group]
            for row in np.flatnonzero(count.add(happened)):
                episode = count.ended[rows][row] - 1
                if episode < episodes:
                    returns[numbers[rows][row], episode] = happened.step.episode_return[row]
                    successes[numbers[rows][row], episode] = happened.step.success[row]
    return float(returns.mean()), float(successes.mean())
