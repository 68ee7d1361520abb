"""Aggregate scores of a method over seeds and tasks, with bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

Scores are float64 [seeds, tasks]: the score of each policy in each task, usually `normalized`. Functions take any
leading axes before these two, so the resamples of a bootstrap are one call.

The bootstrap differs from the paper's in one point. There, each cell of the matrix is an independent training run on
one game, and seeds are resampled separately for each task. Here, one policy is evaluated in all tasks, so its scores
share what the seed did to it. `resampled` therefore draws whole seeds, and then tasks, which all seeds and all methods
share (Owen 2007, "The pigeonhole bootstrap"). Resampling cells would give intervals that are too narrow: with 5 seeds
that differ and 20 tasks, a 95% interval of the mean would hold the true mean in about half of all studies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
"""Number of resamples of a bootstrap."""
LEVEL = 95.0
"""Percentage of resamples inside an interval."""
_CELLS = 4_000_000
"""Largest number of scores that are resampled at a time."""

Statistic = Callable[..., np.ndarray]


class Interval(NamedTuple):
    """A value with the ends of its 95% interval.

    Attributes:
        value: The statistic of the scores.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def normalized(returns: np.ndarray, reference_returns: Mapping[str, float | None]) -> np.ndarray | None:
    """Return (return − random) / (optimal − random): 0 for random actions and 1 for the expert.

    Args:
        returns: Undiscounted returns, any shape.
        reference_returns: Mean returns of `random` actions and of the `optimal` expert.

    Returns:
        float64, the same shape. None if there is no expert, or it is not better than random actions.
    """
    random, optimal = reference_returns.get("random"), reference_returns.get("optimal")
    if random is None or optimal is None or optimal <= random:
        return None
    return (np.asarray(returns, np.float64) - random) / (optimal - random)


def mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean over seeds and tasks, [...]. `scores` is [..., seeds, tasks]."""
    return scores.mean((-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """Return the median over tasks of the mean over seeds, [...]. `scores` is [..., seeds, tasks]."""
    return np.median(scores.mean(-2), -1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Return the interquartile mean, [...]: the mean of all scores but the lowest and the highest quarter.

    Both quarters are rounded down to whole scores, as in `scipy.stats.trim_mean` and rliable.

    Args:
        scores: [..., seeds, tasks].
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    quarter = flat.shape[-1] // 4
    ordered = np.partition(flat, (quarter, flat.shape[-1] - quarter - 1), axis=-1)
    return ordered[..., quarter : flat.shape[-1] - quarter].mean(-1)


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """Return by how much scores miss `target` on average, [...]. Scores above it count as `target`.

    Args:
        scores: [..., seeds, tasks].
        target: The score to reach.
    """
    return target - np.minimum(scores, target).mean((-2, -1))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the probability that a seed of x scores higher than one of y, averaged over tasks, [...].

    Ties count half (the Mann-Whitney U statistic divided by the number of pairs).

    Args:
        x: [..., seeds, tasks].
        y: [..., other seeds, tasks], in the same tasks.
    """
    difference = np.sign(x[..., :, None, :] - y[..., None, :, :])
    return (difference.mean((-3, -2)) / 2 + 0.5).mean(-1)


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of scores above each threshold, [..., n].

    Args:
        scores: [..., seeds, tasks].
        thresholds: float64 [n].
    """
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    flat = ordered.reshape(-1, ordered.shape[-1])
    above = [1 - np.searchsorted(row, thresholds, side="right") / len(row) for row in flat]
    return np.stack(above).reshape(*ordered.shape[:-1], len(thresholds))


def resampled(
    scores: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield resamples of the scores of several methods in the same tasks.

    Seeds are drawn with replacement, separately for each method. Tasks are drawn with replacement once for all.

    Args:
        scores: float64 [seeds, tasks, ...] of each method. The number of seeds can differ.
        resamples: Number of resamples in all.
        seed: Seed of the random numbers.

    Yields:
        For each method [r, seeds, tasks, ...]. The numbers r add up to `resamples`.
    """
    rng, at_once = np.random.default_rng(seed), max(1, min(resamples, _CELLS // sum(x.size for x in scores)))
    for start in range(0, resamples, at_once):
        columns, rows = _draws(rng, min(at_once, resamples - start), scores)
        yield tuple(x[row[:, :, None], columns[:, None]] for x, row in zip(scores, rows, strict=True))


def _draws(rng: np.random.Generator, count: int, scores: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw the tasks of `count` resamples, int64 [count, tasks], and the seeds of each method, [count, seeds]."""
    tasks = scores[0].shape[1]
    return rng.integers(tasks, size=(count, tasks)), [rng.integers(len(x), size=(count, len(x))) for x in scores]


def interval(statistic: Statistic, *scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Compute a statistic and its 95% percentile bootstrap interval over seeds and tasks (see `resampled`).

    With one seed, the interval describes the choice of tasks only.

    Args:
        statistic: Maps the scores of each method, [..., seeds, tasks], to [...].
        *scores: float64 [seeds, tasks] of each method, in the same tasks.
        resamples: Number of resamples.
        seed: Seed of the random numbers.
    """
    low, high = band(statistic, *scores, resamples=resamples, seed=seed)
    return Interval(float(statistic(*scores)), float(low), float(high))


def student_interval(values: np.ndarray) -> Interval:
    """Compute the mean over seeds and Student's 95% interval. With few seeds, a bootstrap would be too narrow.

    Args:
        values: float64 [seeds]. With one seed, the interval is the value.
    """
    from scipy import stats  # takes a tenth of a second, and training starts without it

    value, half = float(values.mean()), 0.0
    if len(values) > 1:
        quantile = stats.t.ppf(0.5 + LEVEL / 200, len(values) - 1)
        half = float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(value, value - half, value + half)


def band(
    statistic: Statistic, *scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval of a statistic with any number of values. See `interval`.

    Infinite values are ordered like others: an end is infinite if the resamples beyond it are.
    """
    return _ends(np.concatenate([statistic(*drawn) for drawn in resampled(scores, resamples, seed)]))


def mean_band(scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the intervals of many means at once, such as those of all episodes of a curve.

    A mean depends only on how often each seed and each task is drawn, so a resample is two matrix products. The memory
    is that of a few arrays [resamples, tasks] and [resamples, n].

    Args:
        scores: float64 [seeds, tasks, n].
        resamples: Number of resamples.
        seed: Seed of the random numbers.

    Returns:
        The lower and the upper ends, float64 [n] each.
    """
    tasks, (seeds,) = _draws(np.random.default_rng(seed), resamples, [scores])
    by_task, by_seed = _counts(tasks, scores.shape[1]), _counts(seeds, scores.shape[0])
    total = sum(weight[:, None] * (by_task @ own) for weight, own in zip(by_seed.T, scores, strict=True))
    return _ends(total / (scores.shape[0] * scores.shape[1]))


def _counts(drawn: np.ndarray, most: int) -> np.ndarray:
    """Return how often each of the numbers below `most` is in each row, float64 [r, most]. `drawn` is int64 [r, k]."""
    flat = (drawn + most * np.arange(len(drawn))[:, None]).ravel()
    return np.bincount(flat, minlength=len(drawn) * most).reshape(-1, most).astype(np.float64)


def _ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval of resampled values, [r, ...]."""
    tail = (100 - LEVEL) / 2
    low = np.percentile(values, tail, axis=0, method="lower")
    return low, np.percentile(values, 100 - tail, axis=0, method="higher")
