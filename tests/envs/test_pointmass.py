"""The point mass: closed forms, the expert, the splits and rendering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.environment.base import TrialRecord, split_hash
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.envs.darkroom.render import GREEN, ORANGE, STRIP_HEIGHT
from relic_jax.envs.pointmass.render import SIDE
from relic_jax.envs.registry import make

ENV = make("pointmass-goal")


def walk(actions, goal):
    """Positions and rewards of one episode."""

    def step(state, action):
        state, timestep = ENV.step(jax.random.key(0), state, action, goal)
        return state, timestep

    state, first = ENV.reset(jax.random.key(0), goal)
    assert not first.observation.any()
    return jax.lax.scan(step, state, jnp.asarray(actions, jnp.float32))[1]


def test_rewards_by_hand():
    steps = walk([[0.0, 0.1]] * 9 + [[5.0, 0.0]], jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(steps.observation[-1], [0.1, 0.9], atol=1e-6)  # clipped to the bounds
    distances = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, np.hypot(0.1, 0.1)]
    np.testing.assert_allclose(steps.reward, np.maximum(1 - np.array(distances) / 0.7, 0), atol=1e-5)
    assert not steps.terminated.any() and not steps.truncated.any()


def test_walls_and_the_time_limit():
    steps = walk([[-0.1, 0.1]] * 40, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(steps.observation[-1], [-1.5, 1.5])
    assert steps.truncated.tolist() == [False] * 39 + [True] and not steps.terminated.any() and not steps.reward.any()


def test_splits_are_held_out_and_do_not_change():
    train, test = ENV.tasks("train"), ENV.tasks("test")
    assert (train.shape, test.shape, train.dtype) == ((200, 2), (40, 2), np.float32)
    assert not set(map(tuple, train)) & set(map(tuple, test))
    np.testing.assert_allclose(np.hypot(*train.T), 1, atol=1e-6)
    assert (train[:, 1] >= 0).all()
    assert (split_hash(train), split_hash(test)) == ("c01e4a562d07", "d8508a241bd5")


def test_lines():
    """The expert's return in each test task by the closed form: after k steps each axis has 0.1·k less to go."""
    lines = reference_returns(ENV, "test", episodes=400)
    goals = np.abs(ENV.tasks("test")).astype(float)[:, None]
    left = np.maximum(goals - 0.1 * np.arange(1, 41)[:, None], 0)
    expected = np.maximum(1 - np.hypot(left[..., 0], left[..., 1]) / 0.7, 0).sum(1).mean()
    assert lines.optimal.mean_return == pytest.approx(expected, abs=1e-3)
    assert lines.optimal.success_rate == 1 and lines.random.mean_return < 2


def test_picture():
    positions = np.linspace([0, 0], [0, 1], 8).astype(np.float32)
    trial = TrialRecord(
        observation=positions,
        action=np.zeros((8, 2), np.float32),
        reward=np.ones(8, np.float32),
        first=np.arange(8) % 4 == 0,
        task=np.array([1.0, 0.0], np.float32),
    )
    frames = ENV.render_trial(trial)
    assert frames.shape == (8, SIDE + STRIP_HEIGHT, SIDE, 3) and frames.dtype == np.uint8
    goal = frames[0][SIDE // 2, round((1 + 1.5) / 3 * (SIDE - 1))]
    assert tuple(goal) == GREEN
    assert tuple(frames[-1][round(0.5 / 3 * (SIDE - 1)), SIDE // 2]) == ORANGE
