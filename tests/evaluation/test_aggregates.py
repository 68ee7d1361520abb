"""Aggregate scores against hand-worked numbers, SciPy, rliable 1.2.0 and simulated studies."""

import math

import numpy as np
import pytest
import scipy.stats

from relic_jax.evaluation import aggregates
from relic_jax.evaluation.aggregates import (
    Interval,
    band,
    interval,
    iqm,
    mean,
    median,
    normalized,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    resampled,
)
from relic_jax.evaluation.learning_speed import Learning, learning_speed, steps_to

SMALL = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]])
DRAWN = np.random.default_rng(0).normal(size=(2, 5, 7)).round(3)
RLIABLE = [-0.13026315789473686, -0.1218857142857143, -0.029600000000000015, 1.1422571428571429, 0.3428571428571429]
RLIABLE_PROFILE = [0.8857142857142857, 0.45714285714285713, 0.2]


def test_normalized_is_0_for_random_actions_and_1_for_the_expert():
    found = normalized(np.array([10.0, 90.0, 50.0, -30.0]), {"random": 10.0, "optimal": 90.0})
    assert found.tolist() == [0.0, 1.0, 0.5, -0.5]
    assert normalized(np.ones(2), {"random": 1.0, "optimal": None}) is None
    assert normalized(np.ones(2), {"random": 1.0, "optimal": 1.0}) is None


def test_hand_worked_numbers():
    assert iqm(SMALL) == (2 + 3 + 4 + 5) / 4  # of 8 scores, two are cut at each end
    assert mean(SMALL) == 121 / 8
    assert median(SMALL) == 3.5  # of the tasks' means 2, 3, 4, 51.5
    assert optimality_gap(SMALL, 2.0) == 2 - (0 + 1 + 2 * 6) / 8
    assert optimality_gap(np.full((2, 3), 5.0)) == 0
    # task by task: 1 of 1 pairs, a tie, 0 of 1 pairs
    assert probability_of_improvement(np.array([[2.0, 1.0, 0.0]]), np.ones((1, 3))) == 0.5
    assert probability_of_improvement(np.array([[1.0], [3.0]]), np.array([[0.0], [2.0], [3.0]])) == (1 + 2.5) / 6
    profile = performance_profile(SMALL, np.array([-1.0, 0.0, 3.5, 100.0]))
    assert profile.tolist() == [1.0, 7 / 8, 4 / 8, 0.0]


def test_scipy_agrees():
    x, y = DRAWN[0], np.concatenate([DRAWN[1], DRAWN[0][:2]])  # with ties
    assert iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25, axis=None), abs=1e-12)
    pairs = [scipy.stats.mannwhitneyu(x[:, task], y[:, task]).statistic / (len(x) * len(y)) for task in range(7)]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_rliable_agrees():
    """The numbers are those of rliable 1.2.0 (`metrics.aggregate_*`, `probability_of_improvement`, profiles)."""
    x, y = DRAWN
    ours = [iqm(x), mean(x), median(x), optimality_gap(x), probability_of_improvement(x, y)]
    assert ours == pytest.approx(RLIABLE, abs=1e-12)
    assert performance_profile(x, np.array([-1.0, 0.0, 0.5])) == pytest.approx(RLIABLE_PROFILE, abs=1e-12)


def test_leading_axes_are_resamples():
    x, y = np.stack([DRAWN[0], DRAWN[1], DRAWN[0] + 1]), np.stack([DRAWN[1], DRAWN[0], DRAWN[1]])
    for statistic in (iqm, mean, median, optimality_gap, lambda s: performance_profile(s, np.array([0.0, 1.0]))):
        assert np.allclose(statistic(x), [statistic(one) for one in x], atol=1e-12)
    expected = [probability_of_improvement(a, b) for a, b in zip(x, y, strict=True)]
    assert np.allclose(probability_of_improvement(x, y), expected, atol=1e-12)


def test_resamples_draw_whole_seeds_and_the_same_tasks_for_all_methods():
    seed, task = np.meshgrid(np.arange(5), np.arange(7), indexing="ij")
    cells = (10.0 * seed + task)[..., None]
    (first, second) = next(resampled([cells, cells[:3]], 50))
    assert first.shape == (50, 5, 7, 1) and second.shape == (50, 3, 7, 1)
    assert (first // 10 == first[:, :, :1] // 10).all()  # one seed in a row
    assert (first % 10 == first[:, :1] % 10).all() and (second % 10 == first[:, :1] % 10).all()  # one task in a column
    assert len(np.unique(first)) == 35 and second.max() < 30


def test_resamples_are_drawn_in_parts_that_fit_into_memory(monkeypatch):
    monkeypatch.setattr(aggregates, "_CELLS", 100)
    assert [len(x) for (x,) in resampled([DRAWN[0]], 7)] == [2, 2, 2, 1]


def test_the_interval_of_a_mean_is_that_of_a_second_computation():
    x, found = DRAWN[0], interval(mean, DRAWN[0], resamples=20_000)
    # both factors resampled: the variance is that of seeds, of tasks and of their interaction
    rng = np.random.default_rng(1)
    means = [x[rng.integers(5, size=5)][:, rng.integers(7, size=7)].mean() for _ in range(20_000)]
    assert found == pytest.approx((x.mean(), *np.percentile(means, [2.5, 97.5])), abs=0.02)
    assert interval(mean, x, seed=3) == interval(mean, x, seed=3) != interval(mean, x, seed=4)


def test_a_single_seed_and_a_single_task():
    assert interval(iqm, np.array([[0.5]])) == Interval(0.5, 0.5, 0.5)


def test_infinite_values_stay_at_their_end():
    low, high = band(lambda x: np.where(x.mean((-2, -1)) > 0.5, np.inf, 1.0), np.array([[0.0], [1.0]]))
    assert (low, high) == (1.0, np.inf)


def test_intervals_cover_the_true_mean_although_seeds_differ():
    """Studies of 5 seeds that differ: whole seeds have to be drawn, resampling cells covers the truth half the time."""
    rng, studies, held = np.random.default_rng(0), 200, {"ours": 0, "cells": 0}
    for study in range(studies):
        scores = rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(1, 20)) + rng.normal(size=(5, 20))
        _, low, high = interval(mean, scores, resamples=300, seed=study)
        held["ours"] += low <= 0 <= high
        rows = rng.integers(5, size=(300, 5, 20))
        low, high = np.percentile(scores[rows, np.arange(20)].mean((1, 2)), [2.5, 97.5])
        held["cells"] += low <= 0 <= high
    assert held["ours"] / studies > 0.8  # a percentile bootstrap of 5 is a little narrow
    assert held["cells"] / studies < 0.6


STEPS = np.array([0.0, 100.0, 200.0, 400.0])


def test_steps_to_a_threshold_are_interpolated():
    scores = np.array(
        [[0.0, 0.4, 1.0, 0.0], [0.9, 0.0, 0.0, 0.0], [0.0, 0.1, 0.2, 0.7], [0.0, 0.8, 0.8, 0.8], [0, 0, 0, 1.6]]
    )
    found = steps_to(STEPS, scores, 0.8)
    assert found == pytest.approx([100 + 100 * 0.4 / 0.6, 0.0, np.inf, 100.0, 300.0])


def runs(*last, steps=STEPS, tasks=3):
    """A seed for each score at the last evaluation, the same in each task."""
    shape = np.array([0.0, 0.0, 0.0, 1.0])[:, None] * np.ones((1, tasks))
    return [Learning(steps, value * shape) for value in last]


def test_learning_speed_of_seeds_that_all_reach_the_threshold():
    found = learning_speed(runs(0.8, 1.6, 3.2), 0.8)  # after 400, 300 and 250 steps
    assert found.median == (300.0, 250.0, 400.0)
    assert found.restricted_mean.value == pytest.approx(950 / 3)
    assert (found.reached, found.seeds, found.limit) == (3, 3, 400)
    assert str(found) == "300 [250, 400]"


def test_seeds_that_never_reach_it_are_censored():
    found = learning_speed(runs(0.8, 1.6, 0.1), 0.8)
    assert found.median.value == 400 and math.isinf(found.median.high)
    assert found.restricted_mean.value == pytest.approx((400 + 300 + 400) / 3)
    assert str(found) == "400 [300, > 400], 2 of 3 reached it"
    never = learning_speed(runs(0.1, 0.2), 0.8)
    assert str(never) == "> 400 [> 400, > 400], 0 of 2 reached it"
    half = learning_speed(runs(1.6, 0.2), 0.8)
    assert math.isinf(half.median.value) and half.median.low == 300  # half of two seeds is not known to be below


def test_a_faster_method_is_never_reported_slower_when_its_runs_are_longer():
    """Runs are compared up to the end of the shortest."""
    longer = Learning(np.append(STEPS, 800.0), np.append(np.zeros((4, 3)), np.ones((1, 3)), axis=0))
    found = learning_speed([*runs(1.6), longer], 0.8)
    assert found.limit == 400 and found.reached == 1


def test_evaluations_at_different_steps_are_aligned():
    other = Learning(np.array([0.0, 50.0, 400.0]), np.array([[0.0], [0.0], [0.7]]) * np.ones((1, 3)))
    found = learning_speed([*runs(1.6), other], 0.8)
    assert found.reached == 1 and found.restricted_mean.value == 350


def test_the_choice_of_tasks_is_part_of_the_interval():
    """One seed that learns one of two tasks: with resampled tasks, it reaches the mean early, or never."""
    scores = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.6, 0.0]])
    found = learning_speed([Learning(STEPS, scores)], 0.8)
    assert (found.median.value, found.median.low) == (400.0, 300.0) and math.isinf(found.median.high)


def test_students_interval_of_hand_worked_numbers():
    # The mean of 3, 5 and 7 is 5, their standard deviation 2, and 4.303 is the quantile: 4.303 · 2 / sqrt(3) = 4.97.
    assert aggregates.student_interval(np.array([3.0, 5.0, 7.0])) == pytest.approx((5, 0.032, 9.968), abs=1e-3)
    assert aggregates.student_interval(np.array([3.0])) == (3, 3, 3)
