"""Statistics of the trials of an evaluation: means by task, percentiles and gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def means_by_task(values: Sequence[np.ndarray], tasks: int) -> np.ndarray:
    """Average over the repeats of each task.

    Args:
        values: One array [tasks · repeats, E] per seed, task-major.
        tasks: Number of tasks.

    Returns:
        float64 [seeds, tasks, E].
    """
    stacked = np.stack(values).astype(np.float64)
    return stacked.reshape(len(values), tasks, -1, stacked.shape[-1]).mean(2)


def percentile_over_tasks(values: Sequence[np.ndarray], tasks: int, percent: float) -> np.ndarray:
    """Compute a percentile over tasks, averaged over seeds. The value of a task is its mean over repeats.

    Args:
        values: One array [tasks · repeats, E] per seed, task-major.
        tasks: Number of tasks.
        percent: 0 to 100.

    Returns:
        float64 [E].
    """
    return np.percentile(means_by_task(values, tasks), percent, axis=1).mean(0)


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
