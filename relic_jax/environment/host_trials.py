"""Trials of environments in worker processes. `HostTrials` is to them what `Trials` is to environments inside jit.

Arrays are numpy's. The environments of a pool form groups: while the policy acts for one group, the workers simulate
the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from relic_jax.bridge.pool import Batch, Pool, PoolError
from relic_jax.environment.base import PyTree
from relic_jax.environment.host import HostEnvironment
from relic_jax.environment.trials import TrialState, TrialStep


class GroupStep(NamedTuple):
    """A step of one group of b environments.

    A lost step (not `batch.valid`) ends the episode, and its reward is unknown.

    Attributes:
        group: Index of the group.
        before: The trials in which the policy acted.
        batch: The answer of the workers.
        step: The result of the step.
    """

    group: int
    before: TrialState
    batch: Batch
    step: TrialStep


class HostTrials:
    """Trials of the environments of a pool, group by group.

    In a `TrialState` of these trials, `env` is the seed of the trial and `task` the fingerprint of the task.

    Attributes:
        env: The environment.
        pool: Its workers.
        show_last_reward: As in `Trials`.
        rows: The range of environments of each group.
        trials: The state of each group.
    """

    def __init__(self, env: HostEnvironment, pool: Pool, show_last_reward: bool = False) -> None:
        self.env, self.pool, self.show_last_reward = env, pool, show_last_reward
        numbers = [pool.group(index) for index in range(pool.config.groups)]
        self.rows = [slice(int(n[0]), int(n[-1]) + 1) for n in numbers]
        self.trials: list[TrialState] = []

    @property
    def all(self) -> TrialState:
        """The trials of all groups together."""
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self.trials)

    def reset(self, tasks: np.ndarray, seeds: np.ndarray) -> None:
        """Start trials.

        Args:
            tasks: Fingerprints, uint8 [B, 16].
            seeds: int32 [B].

        Raises:
            PoolError: If the workers fail.
        """
        batch = self.pool.reset([self.env.task(row) for row in tasks], seeds.tolist())
        zeros, actions = np.zeros(len(seeds), np.float32), self.env.action_space
        previous = np.full((len(seeds), *actions.shape), actions.null_action, actions.dtype)
        arrays: Any = (previous, zeros, np.ones(len(seeds), bool), zeros, batch.legal)
        self._split(TrialState(seeds, tasks, self.env.observe(batch.observation), *arrays))

    def resume(self, trial: TrialState, episodes: np.ndarray, replay: Sequence[np.ndarray]) -> np.ndarray:
        """Continue the trials of another pool, see `Pool.reset`.

        Args:
            trial: The state of all trials.
            episodes: int [B]. Index of each trial's current episode.
            replay: The actions of each trial's current episode, in the environment's units.

        Returns:
            bool [B]: whether the replay led to the same state. Otherwise the next episode starts.

        Raises:
            PoolError: If the workers fail.
        """
        tasks: list[Any] = [self.env.task(row) for row in np.asarray(trial.task)]

        def reset(episodes: np.ndarray, replay: list[list[Any]]) -> tuple[tuple[PyTree, Any], np.ndarray]:
            batch = self.pool.reset(tasks, trial.env.tolist(), episodes.tolist(), replay)
            return (self.env.observe(batch.observation), batch.legal), batch.valid

        actions = [row.tolist() for row in replay]
        reached, valid = reset(episodes, actions)
        pairs = zip(jax.tree.leaves(reached), jax.tree.leaves((trial.observation, trial.legal)), strict=True)
        equal = [(a == b).reshape(len(tasks), -1).all(1) for a, b in pairs]
        same = trial.first | np.all([*equal, valid], axis=0)
        if not same.all():
            reached, _ = reset(episodes + ~same, [row if ok else [] for row, ok in zip(actions, same, strict=True)])
        changes: dict[str, Any] = {
            "observation": reached[0],
            "legal": reached[1],
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
        """Step the groups in turns, each while the others are simulated.

        Args:
            act: Called with (group, index of the step, trials). Returns actions in the environment's units, [b, ...].
                `ActionSpace.expert_mark` lets the expert act.
            steps: Number of steps. None: until `enough`.
            enough: Called before each step. Returns whether to stop.

        Yields:
            The steps, group by group.

        Raises:
            PoolError: If the workers fail.
        """
        index, over = 0, False
        while not over:
            over = index == steps or enough()
            for group in range(len(self.rows)):
                if index:
                    yield self.step(group)
                if not over:
                    self.pool.send(act(group, index, self.trials[group]), group)
            index += 1

    def run_ready(self, act: Callable[[int, int, TrialState], np.ndarray], steps: int) -> Iterator[GroupStep]:
        """Step every group `steps` times. The first group that is ready is stepped first.

        A slow group delays the others only after they have taken all their steps. If `act` depends only on its
        arguments, the steps of a group equal those of `run`.

        Args:
            act: See `run`.
            steps: Number of steps of each group.

        Yields:
            The steps, in the order in which the workers answer.

        Raises:
            PoolError: If the workers fail.
        """
        counts = [0] * len(self.rows)
        pending: list[int] = []  # in the order in which actions were sent

        def send(group: int) -> None:
            self.pool.send(act(group, counts[group], self.trials[group]), group)
            pending.append(group)

        for group in range(len(self.rows)) if steps else ():
            send(group)
        while pending:
            group = self.pool.ready(pending)
            pending.remove(group)
            yield self.step(group)
            counts[group] += 1
            if counts[group] < steps:
                send(group)

    def step(self, group: int) -> GroupStep:
        """Finish the step whose actions were sent to a group. The counterpart of `Trials.step`."""
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
        result: Any = TrialStep(
            reward=batch.reward,  # type: ignore[arg-type]
            terminated=batch.terminated,  # type: ignore[arg-type]
            truncated=batch.truncated,  # type: ignore[arg-type]
            final_observation=None,
            episode_return=episode_return,
            success=self.env.succeeded(batch),  # type: ignore[arg-type]
            metrics=self.env.other_metrics(batch),  # type: ignore[arg-type]
        )
        return GroupStep(group, before, batch, result)

    def _previous(self, first: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Return the previous action as the policy reads it. `first`, bool [b], marks rows that have none."""
        actions = self.env.action_space
        return per_row(first, np.full_like(action, actions.null_action), action).astype(actions.dtype)


def waves(env: HostEnvironment, count: int, show_last_reward: bool = False) -> Iterator[tuple[HostTrials, np.ndarray]]:
    """Divide `count` trials into waves that the workers can hold.

    Yields:
        The trials of a wave and their numbers, int32 [b]. The last wave repeats its last number to fill the workers.

    Raises:
        ConfigError: If the workers cannot start.
    """
    size = env.concurrent_trials(count)
    with env.start(size) as pool:
        trials = HostTrials(env, pool, show_last_reward)
        for start in range(0, count, size):
            yield trials, np.minimum(np.arange(start, start + size), count - 1)


def per_row(condition: np.ndarray, on_true: np.ndarray, on_false: np.ndarray) -> np.ndarray:
    """Choose rows from two arrays with leading axis b. `condition` is bool [b]."""
    return np.where(condition.reshape(-1, *(1,) * (on_true.ndim - 1)), on_true, on_false)


class EpisodeCount:
    """Counts the complete episodes of a wave.

    Attributes:
        ended: int [B]. Episodes that ended without a lost step at their end.
    """

    def __init__(self, trials: HostTrials, episodes: int) -> None:
        self._trials, self._episodes = trials, episodes
        self.ended = np.zeros(trials.pool.config.total, int)

    def add(self, step: GroupStep) -> np.ndarray:
        """Count the episodes that end with a step.

        Returns:
            bool [b]: whether an episode ended.

        Raises:
            PoolError: If a trial was lost because its task cannot be set up again.
        """
        if self._trials.pool.dropped:
            raise PoolError(f"env {self._trials.env.name!r}: a trial was lost, its task cannot be set up again")
        ended = (step.batch.terminated | step.batch.truncated) & step.batch.valid
        self.ended[self._trials.rows[step.group]] += ended
        return ended

    def enough(self) -> bool:
        """Return whether every environment has played its episodes."""
        return bool((self.ended >= self._episodes).all())
