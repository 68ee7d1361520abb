"""Intervals of a curve against closed forms and the bootstrap of `aggregates.interval`, and means by task."""

import numpy as np
import pytest

from relic_jax.config import EvalConfig
from relic_jax.envs.registry import make
from relic_jax.evaluation import Curves, aggregates, summarise
from relic_jax.evaluation.aggregates import Interval, interval, mean_band
from relic_jax.evaluation.statistics import means_by_task


def band(*values, tasks, **options):
    return mean_band(means_by_task(values, tasks), **options)


def test_no_variance_no_width():
    low, high = band(np.full((4, 3), 7.0), np.full((4, 3), 7.0), tasks=4)
    assert low.tolist() == high.tolist() == [7.0, 7.0, 7.0]


def test_repeats_are_averaged_within_their_task_before_anything_is_drawn():
    task_major = np.array([[0.0], [10.0], [4.0], [6.0]])  # two tasks of two repeats, both of mean 5
    assert means_by_task([task_major, task_major + 1], 2).tolist() == [[[5.0], [5.0]], [[6.0], [6.0]]]
    assert [x.tolist() for x in band(task_major, tasks=2)] == [[5.0], [5.0]]
    low, high = band(task_major, tasks=4)
    assert low[0] < 5.0 < high[0]


def test_two_tasks_by_hand():
    """Means of two draws from {0, 1}: 0, ½, 1 with probabilities ¼, ½, ¼, so the 95% interval is everything."""
    assert [x.tolist() for x in band(np.array([[0.0], [1.0]]), tasks=2)] == [[0.0], [1.0]]


def test_two_seeds_by_hand():
    """Seeds are drawn too: with all tasks alike, the mean is that of two draws from the seeds."""
    assert [x.tolist() for x in band(np.full((50, 1), 0.0), np.full((50, 1), 1.0), tasks=50)] == [[0.0], [1.0]]


def test_interval_has_the_closed_form_width_for_many_tasks():
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 1))
    low, high = band(values, tasks=400, resamples=8000)
    error = 1.96 * values.std() / np.sqrt(400)
    assert low[0] == pytest.approx(values.mean() - error, abs=0.02)
    assert high[0] == pytest.approx(values.mean() + error, abs=0.02)


def test_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(1)
    low, high = band(rng.normal(size=(60, 500)), tasks=60, resamples=1000)  # 500 independent columns
    assert 0.91 <= np.mean((low <= 0) & (high >= 0)) <= 0.98


def test_interval_is_deterministic_in_its_seed():
    values = np.random.default_rng(0).normal(size=(10, 2))
    once, again, other = (band(values, tasks=10, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_tasks_are_drawn_once_for_all_seeds():
    """Two seeds that agree in every task are as uncertain as one."""
    values = np.random.default_rng(0).normal(size=(20, 1))
    assert np.allclose(band(values, values, tasks=20), band(values, tasks=20), atol=0.08)


def test_every_interval_of_a_report_is_the_one_that_compare_and_difference_compute():
    returns = np.random.default_rng(0).normal(size=(3, 20, 4)).astype(np.float32)
    returns += 3 * returns[0, :, :1]  # some tasks are easy for all seeds
    config, references = EvalConfig(episodes=4, tasks=10, repeats=2), {"random": 0.0, "optimal": None}
    curves = [Curves(x, x > 0, trial=None, metrics={"steps": 2 * x}) for x in returns]
    report = summarise(make("darkroom-dpt"), "test", config, curves, references, {})
    by_task = returns.astype(np.float64).reshape(3, 10, 2, 4).mean(2)

    def check(curve, values):
        for episode, found in enumerate(zip(curve.mean, curve.low, curve.high, strict=True)):
            assert Interval(*found) == pytest.approx(interval(aggregates.mean, values[..., episode]), abs=1e-6)

    check(report.returns, by_task)
    check(report.metrics["steps"], 2 * by_task)
    check(report.gain, by_task[..., -1:] - by_task[..., :1])
    check(report.later_gain["return"], by_task[..., 2:].mean(-1, keepdims=True) - by_task[..., :1])
    check(report.success, (returns > 0).reshape(3, 10, 2, 4).mean(2))
