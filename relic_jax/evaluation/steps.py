"""The steps of an evaluation, and the values per episode that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from relic_jax.environment.base import PyTree, TrialRecord

Array = jax.Array | np.ndarray
Progress = Callable[[float], None]
"""Called with the fraction of an evaluation that is done."""


class Steps(NamedTuple):
    """T steps of B trials. Leaves are [T, B, …] unless noted.

    Attributes:
        action: In the environment's units.
        reward: float32.
        first: bool. Whether the step is the first of an episode.
        ended: bool. Whether the step ends an episode.
        episode_return: float32. Return of the episode so far.
        success: bool. Meaningful where `ended`.
        metrics: float32 by name. Meaningful where `ended`.
        observation: [T, …], of one environment only: of the first trial until it is finished.
        record: [T, …], `Environment.record` of the same environment.
        cut: `TrialStep.cut`.
    """

    action: Array
    reward: Array
    first: Array
    ended: Array
    episode_return: Array
    success: Array
    metrics: Mapping[str, Array]
    observation: PyTree
    record: PyTree
    cut: Array | None = None


_BATCHED = ("action", "reward", "first", "ended", "episode_return", "success", "metrics")


def map_batched(function: Callable[..., np.ndarray], steps: Steps, *others: Steps) -> Steps:
    """Apply a function to the leaves that have an axis B. The other fields are those of `steps`."""
    fields = zip(*([getattr(s, name) for name in _BATCHED] for s in (steps, *others)), strict=True)
    return steps._replace(**{name: jax.tree.map(function, *x) for name, x in zip(_BATCHED, fields, strict=True)})


def per_episode(steps: Steps, episodes: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return returns, successes and metrics of each trial's first episodes, [B, episodes] each."""
    ends = [np.flatnonzero(column)[:episodes] for column in steps.ended.T]
    index, row = np.stack(ends), np.arange(len(ends))[:, None]
    return jax.tree.map(lambda x: np.asarray(x)[index, row], (steps.episode_return, steps.success, steps.metrics))


def first_trial(steps: Steps, tasks: PyTree, episodes: int) -> TrialRecord:
    """Return the record of the first trial, up to the end of its last episode."""
    end = np.flatnonzero(steps.ended[:, 0])[episodes - 1] + 1
    return TrialRecord(
        observation=jax.tree.map(lambda x: x[:end], steps.observation),
        action=np.asarray(steps.action)[:end, 0],
        reward=np.asarray(steps.reward)[:end, 0],
        first=np.asarray(steps.first)[:end, 0],
        task=jax.tree.map(lambda x: np.asarray(x)[0], tasks),
        record=jax.tree.map(lambda x: x[:end], steps.record),
    )
