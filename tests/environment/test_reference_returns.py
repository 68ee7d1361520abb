"""Reference returns against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.environment.base import Discrete
from relic_jax.environment.reference_returns import ReferenceReturn, reference_returns
from relic_jax.envs.registry import make


def test_sampled_actions_are_uniform():
    actions = jax.vmap(Discrete(5).sample)(jax.random.split(jax.random.key(0), 5000))
    assert actions.dtype == np.int32
    np.testing.assert_allclose(np.bincount(actions, minlength=5) / 5000, 0.2, atol=0.02)


@functools.cache
def estimated(name, split, episodes=8000):
    return reference_returns(make(name), split, episodes=episodes)


def test_dpt_optimal_returns():
    # Mean of 101 − (x + y), 100 at the origin: 91.99 over all goals, so (9199 − 20·90.9) / 80 over the train goals.
    assert estimated("darkroom-dpt", "test").optimal == ReferenceReturn(pytest.approx(90.9), 1.0)
    assert estimated("darkroom-dpt", "train").optimal == ReferenceReturn(pytest.approx(92.2625), 1.0)


def test_dpt_random_returns():
    # Each of 100 steps lands on exactly one of 100 cells: over ALL goals the random return is exactly 1.
    test = estimated("darkroom-dpt", "test").random.mean_return
    train = estimated("darkroom-dpt", "train").random.mean_return
    assert test == pytest.approx(0.74, abs=0.08)
    assert 0.2 * test + 0.8 * train == pytest.approx(1.0, abs=0.08)


def test_ad_9_optimal_returns():
    # 21 − distance from (4, 4), 20 there: 16.54 over all 81 goals.
    total = (
        72 * estimated("darkroom-ad-9", "train").optimal.mean_return
        + 9 * estimated("darkroom-ad-9", "test").optimal.mean_return
    )
    assert total / 81 == pytest.approx(21 - 2 * 20 / 9 - 1 / 81, abs=1e-6)


def test_optimum_counts_only_goals_within_reach_and_stops_at_the_end_of_the_episode():
    env = make("darkroom-hard-17")
    reachable = np.mean(env.tasks("test").goal.sum(1) <= env.horizon)
    optimal = estimated("darkroom-hard-17", "test").optimal
    assert (optimal.mean_return, optimal.success_rate) == (pytest.approx(reachable), pytest.approx(reachable))


def test_permuted_and_key_to_door_optima():
    assert estimated("darkroom-permuted", "test").optimal == ReferenceReturn(83.0, 1.0)
    assert estimated("key-to-door-9", "test").optimal == ReferenceReturn(2.0, 1.0)


def test_probe_returns():
    bandit = estimated("probe-bandit", "test")
    assert bandit.random.mean_return == pytest.approx(0.8, abs=0.08)
    assert bandit.random.success_rate == pytest.approx(0.2, abs=0.04)
    assert bandit.optimal == ReferenceReturn(4.0, 1.0)
    assert estimated("probe-value", "train").optimal is None
    assert estimated("probe-value", "train").random == ReferenceReturn(1.0, 1.0)


def test_seed_decides():
    env = make("darkroom-dpt")
    once, again, other = (reference_returns(env, "test", episodes=500, seed=seed).random for seed in (0, 0, 1))
    assert once == again and once != other


def test_a_limit_leaves_the_first_tasks_of_the_split():
    """The expert steps on the goal after as many steps as it is away from the corner, and stays."""
    env = make("darkroom-dpt")
    away = np.asarray(env.tasks("test").goal).sum(axis=-1)
    for limit in (3, 10, None):
        optimal = reference_returns(env, "test", episodes=20, limit=limit).optimal
        assert optimal == ReferenceReturn(pytest.approx(np.mean(101 - away[:limit])), 1.0)


def test_of_more_tasks_than_episodes_evenly_spaced_ones_are_played():
    class Listed(type(make("probe-bandit"))):
        """The bandit with a hundred tasks of each of three kinds; of the second there is no such arm to pull."""

        def tasks(self, split):
            return np.repeat(np.array([0, 9, 1], np.int32), 100)

        def optimal_action(self, state, task):
            return jnp.minimum(task, 4)

    env = Listed()
    assert reference_returns(env, "test", episodes=3).optimal == ReferenceReturn(
        pytest.approx(4 * 2 / 3), pytest.approx(2 / 3)
    )
    assert make("house-objnav-small").reference_episodes < make("probe-bandit").reference_episodes == 8192
