"""Statistics over tasks and seeds: means, bootstrap intervals, percentiles and gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: Sequence[np.ndarray], *, tasks: int, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95% percentile bootstrap interval of the mean over tasks AND seeds (Efron 1979).

    Each resample draws seeds with replacement, and for each drawn seed tasks with replacement. A drawn task brings all
    its repeats.

    Args:
        values: One array [tasks · repeats, E] per seed, task-major.
        tasks: Number of tasks.
        resamples: Number of resamples.
        seed: Seed of the random numbers.

    Returns:
        The lower and the upper end, float64 [E] each.
    """
    by_task = np.stack([_means_by_task(v, tasks) for v in values])
    rng = np.random.default_rng(seed)
    seeds = len(values)
    means = np.empty((resamples, by_task.shape[-1]))
    for index in range(resamples):
        drawn = rng.integers(seeds, size=seeds)
        means[index] = by_task[drawn[:, None], rng.integers(tasks, size=(seeds, tasks))].mean((0, 1))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def percentile_over_tasks(values: Sequence[np.ndarray], tasks: int, percent: float) -> np.ndarray:
    """Compute a percentile over tasks, averaged over seeds. The value of a task is its mean over repeats.

    Args:
        values: One array [tasks · repeats, E] per seed, task-major.
        tasks: Number of tasks.
        percent: 0 to 100.

    Returns:
        float64 [E].
    """
    return np.mean([np.percentile(_means_by_task(v, tasks), percent, axis=0) for v in values], axis=0)


def _means_by_task(values: np.ndarray, tasks: int) -> np.ndarray:
    """[tasks · repeats, E] → float64 [tasks, E]."""
    return np.asarray(values, np.float64).reshape(tasks, -1, values.shape[-1]).mean(1)


def gain(values: np.ndarray, first: int) -> np.ndarray:
    """Return the last episode less episode `first`, [N, 1]. `values` is [N, E]."""
    return values[:, -1:] - values[:, first, None]


def later_gain(values: np.ndarray, first: int) -> np.ndarray | None:
    """Return the mean over the third to last episodes less the first one, [N, 1]. Episodes are counted from `first`.

    None if there are fewer than three. `values` is [N, E].
    """
    own = values[:, first:]
    return None if own.shape[1] < 3 else own[:, 2:].mean(1, keepdims=True) - own[:, :1]


def shortest(x: np.ndarray) -> list:
    """Return nested lists of the shortest decimal numbers that round to the same float32."""
    return np.asarray(x, np.float32).astype(str).astype(np.float64).tolist()
