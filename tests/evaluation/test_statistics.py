"""Bootstrap intervals and percentiles against closed forms."""

import numpy as np
import pytest

from relic_jax.evaluation import bootstrap_interval


def test_no_variance_no_width():
    low, high = bootstrap_interval([np.full((4, 3), 7.0), np.full((4, 3), 7.0)], tasks=4)
    assert low.tolist() == high.tolist() == [7.0, 7.0, 7.0]


def test_repeats_are_averaged_within_their_task_before_anything_is_drawn():
    task_major = np.array([[0.0], [10.0], [4.0], [6.0]])  # two tasks of two repeats, both of mean 5
    low, high = bootstrap_interval([task_major], tasks=2)
    assert (low.tolist(), high.tolist()) == ([5.0], [5.0])
    low, high = bootstrap_interval([task_major], tasks=4)
    assert low[0] < 5.0 < high[0]


def test_two_tasks_by_hand():
    """Means of two draws from {0, 1}: 0, ½, 1 with probabilities ¼, ½, ¼, so the 95% interval is everything."""
    low, high = bootstrap_interval([np.array([[0.0], [1.0]])], tasks=2)
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


def test_two_seeds_by_hand():
    """Seeds are drawn too: with all tasks alike, the mean is that of two draws from the seeds."""
    low, high = bootstrap_interval([np.full((50, 1), 0.0), np.full((50, 1), 1.0)], tasks=50)
    assert (low.tolist(), high.tolist()) == ([0.0], [1.0])


def test_interval_has_the_closed_form_width_for_many_tasks():
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 1))
    low, high = bootstrap_interval([values], tasks=400, resamples=8000)
    error = 1.96 * values.std() / np.sqrt(400)
    assert low[0] == pytest.approx(values.mean() - error, abs=0.02)
    assert high[0] == pytest.approx(values.mean() + error, abs=0.02)


def test_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    low, high = bootstrap_interval([rng.normal(size=(60, 500))], tasks=60, resamples=1000)  # 500 independent columns
    assert 0.91 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_interval_is_deterministic_in_its_seed():
    values = [np.random.default_rng(0).normal(size=(10, 2))]
    once, again, other = (bootstrap_interval(values, tasks=10, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)
