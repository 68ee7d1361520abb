"""Learning speed: environment steps until a share of the optimal return is reached, with runs that never reach it.

Such a run is censored: all that is known is that it takes more steps than the run lasted. Leaving it out, or counting
its length as the steps it took, would make a method look faster than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from relic_jax.evaluation.aggregates import Interval, band

THRESHOLD = 0.8
"""Share of the optimal return, as a normalized score."""


class Learning(NamedTuple):
    """The evaluations of one run during training.

    Attributes:
        steps: float64 [n], environment steps, ascending.
        scores: float64 [n, tasks], normalized scores.
    """

    steps: np.ndarray
    scores: np.ndarray


class LearningSpeed(NamedTuple):
    """Environment steps to the threshold, over the seeds of one method.

    Attributes:
        median: The median over seeds. Infinite values are beyond `limit`.
        restricted_mean: The mean over seeds of the steps to the threshold or to `limit`, whichever is less.
        reached: Number of seeds that reached the threshold within `limit`.
        seeds: Number of seeds.
        limit: Environment steps of the shortest run, to which all are compared.
    """

    median: Interval
    restricted_mean: Interval
    reached: int
    seeds: int
    limit: float

    def __str__(self) -> str:
        """Return the median with its interval, and how many seeds reached the threshold if not all did."""
        value, low, high = (_steps(x, self.limit) for x in self.median)
        reached = "" if self.reached == self.seeds else f", {self.reached} of {self.seeds} reached it"
        return f"{value} [{low}, {high}]{reached}"


def _steps(value: float, limit: float) -> str:
    """Return a number of steps with few digits: evaluations are too far apart for more."""
    if not np.isfinite(value):
        return f"> {_steps(limit, limit)}"
    return f"{value / 1e6:.2f}M" if value >= 999_500 else f"{value / 1e3:.0f}k" if value >= 1_000 else f"{value:.0f}"


def steps_to(steps: np.ndarray, scores: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Return the environment steps at which scores first reach a threshold, [...]. Infinite if they never do.

    Scores are interpolated linearly between evaluations.

    Args:
        steps: float64 [n], ascending.
        scores: [..., n].
        threshold: The score to reach.
    """
    reached = scores >= threshold
    after = reached.argmax(-1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(scores, index[..., None], -1)[..., 0] for index in (before, after))
    rise = high - low
    share = np.divide(threshold - low, rise, out=np.ones_like(rise), where=rise > 0)
    crossing = steps[before] + np.where(after > 0, share, 0.0) * (steps[after] - steps[before])
    return np.where(reached.any(-1), crossing, np.inf)


def learning_speed(runs: Sequence[Learning], threshold: float = THRESHOLD) -> LearningSpeed:
    """Compute the steps to a threshold of one method, with 95% bootstrap intervals over seeds and tasks.

    A run's score is the mean over tasks. Each resample draws seeds and tasks (`aggregates.resampled`) and computes
    anew when each drawn seed reaches the threshold. Medians and the ends of intervals are infinite if too many runs are
    censored.

    Args:
        runs: The seeds. They are evaluated in the same tasks; steps can differ.
        threshold: The normalized score to reach.
    """
    steps, scores = aligned(runs)
    limit = float(steps[-1])

    def per_seed(scores: np.ndarray) -> np.ndarray:
        return steps_to(steps, scores.mean(-2), threshold)

    def both(scores: np.ndarray) -> np.ndarray:
        found = np.sort(per_seed(scores), -1)
        middle = found.shape[-1] // 2
        lower = found[..., (found.shape[-1] - 1) // 2]
        return np.stack([(lower + found[..., middle]) / 2, np.minimum(found, limit).mean(-1)], -1)

    values = both(scores)
    low, high = band(both, scores)
    median, restricted = (Interval(*map(float, ends)) for ends in zip(values, low, high, strict=True))
    reached = int(np.isfinite(per_seed(scores)).sum())
    return LearningSpeed(median, restricted, reached, len(runs), limit)


def aligned(runs: Sequence[Learning]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of several runs at common steps, interpolated linearly, up to the end of the shortest run.

    Returns:
        Steps, float64 [n], and scores, float64 [seeds, tasks, n].
    """
    limit = min(float(run.steps[-1]) for run in runs)
    steps = np.unique(np.concatenate([[limit], *(run.steps[run.steps <= limit] for run in runs)]))
    scores = [[np.interp(steps, run.steps, column) for column in run.scores.T] for run in runs]
    return steps, np.asarray(scores)
