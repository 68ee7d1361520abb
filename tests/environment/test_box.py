"""Box spaces, and how trials scale their actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from summing import Add

from relic_jax.environment.base import Box, Discrete
from relic_jax.environment.trials import Trials

SPACE = Box((-0.1, 0.0, -7.0), (0.3, 4.0, -3.0))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((), ()),
        ((0.0,), (0.0,)),
        ((1.0,), (0.0,)),
        ((0.0,), (1.0, 2.0)),
        ((float("-inf"),), (0.0,)),
        ((0.0,), (1e300,)),  # infinite in float32
        ((-3e38,), (3e38,)),  # their distance is
        ((1.0,), (1.0 + 1e-12,)),  # equal in float32
    ],
)
def test_bounds_that_make_no_sense(low, high):
    with pytest.raises(ValueError, match="allowed: finite, as many, low below high"):
        Box(low, high)


def test_a_box_is_hashable_and_says_what_it_is():
    assert hash(SPACE) == hash(Box((-0.1, 0.0, -7.0), (0.3, 4.0, -3.0))) and SPACE.n == 3 and SPACE.shape == (3,)
    assert str(SPACE) == "actions of 3 numbers in [-7, -3], [-0.1, 0.3], [0, 4]"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 1e6)), min_size=1, max_size=4), st.data())
def test_bounds_are_never_exceeded_and_from_env_inverts_to_env(bounds, data):
    """bounds: (low, width) of each component."""
    space = Box(tuple(low for low, _ in bounds), tuple(low + width for low, width in bounds))
    action = np.array(data.draw(st.lists(st.floats(-3, 3, width=32), min_size=space.n, max_size=space.n)), np.float32)
    applied = space.to_env(action)
    assert applied.dtype == np.float32
    assert (applied >= np.float32(space.low)).all() and (applied <= np.float32(space.high)).all()
    low, high = np.float64(space.low), np.float64(space.high)
    expected = low + (np.clip(action, -1, 1).astype(np.float64) + 1) / 2 * (high - low)
    rounding = 1e-6 * np.maximum(np.abs(low), np.abs(high))
    np.testing.assert_array_less(np.abs(applied - expected), rounding)
    error = np.abs(space.from_env(applied) - np.clip(action, -1, 1))
    np.testing.assert_array_less(error, 4 * rounding / (high - low) + 1e-6)


def test_both_kinds_of_arrays_get_the_same_numbers():
    action = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    for name in ("to_env", "to_policy", "from_env"):
        mine, theirs = getattr(SPACE, name)(action), getattr(SPACE, name)(jnp.asarray(action))
        assert isinstance(theirs, jax.Array) and isinstance(mine, np.ndarray)
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_uniform_samples_fill_the_bounds():
    drawn = np.asarray(jax.vmap(SPACE.sample)(jax.random.split(jax.random.key(0), 20_000)))
    mine = SPACE.draw(np.random.default_rng(0), 20_000)
    low, high = np.array(SPACE.low), np.array(SPACE.high)
    for found in (drawn, mine):
        assert found.dtype == np.float32 and (found >= np.float32(low)).all() and (found <= np.float32(high)).all()
        deviation = (high - low) / np.sqrt(12)
        assert (np.abs(found.mean(0) - (low + high) / 2) < 5 * deviation / np.sqrt(20_000)).all()


def test_the_expert_is_asked_for_by_what_survives_scaling():
    assert np.isnan(SPACE.to_env(np.full(3, SPACE.expert_mark, np.float32))).all()
    assert Discrete(3).to_env(np.int32(Discrete.expert_mark)) == -1


def test_trials_scale_clip_and_remember_the_action():
    trials = Trials(Add())
    state = trials.reset(jax.random.key(0), jnp.array([100.0, 3.0]))
    assert state.previous_action.shape == (2, 2) and state.previous_action.dtype == jnp.float32
    action = jnp.array([[0.5, -9.0], [7.0, 0.25]])
    after, result = trials.step(jax.random.key(1), state, action)
    np.testing.assert_allclose(result.reward, [3.0, 4.0])
    np.testing.assert_allclose(result.final_observation, [[3.0, -1.0], [4.0, 0.25]])
    assert result.terminated.tolist() == [False, True]
    np.testing.assert_allclose(after.previous_action, [[0.5, -1.0], [0.0, 0.0]])  # an episode ended in the second
    assert after.first.tolist() == [False, True]
