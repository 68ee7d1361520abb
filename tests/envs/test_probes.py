"""Probe environments: each says exactly what its docstring promises, and nothing else can solve it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.envs.probes.env import PRESETS


def episodes(env, actions, task=0, count=64):
    """Plays the same actions (int32 [horizon]) in `count` episodes. Observations [count, horizon + 1, …], TimeSteps."""

    def play(key):
        state, first = env.reset(key, jnp.int32(task))

        def step(state, action):
            next_state, timestep = env.step(key, state, action, jnp.int32(task))
            return next_state, timestep

        _, steps = jax.lax.scan(step, state, jnp.array(actions))
        return jnp.concatenate([first.observation[None], steps.observation]), steps

    return jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), count))


@pytest.mark.parametrize("name", PRESETS)
def test_episodes_terminate_at_the_horizon_and_match_the_spec(name):
    env = PRESETS[name]
    observations, steps = episodes(env, [0] * env.horizon)
    assert steps.terminated.tolist() == [[False] * (env.horizon - 1) + [True]] * 64
    assert not steps.truncated.any()
    assert observations.shape[2:] == env.observation_spec.shape and observations.dtype == env.observation_spec.dtype
    assert steps.reward.dtype == jnp.float32


def test_value_is_always_rewarded():
    for action in (0, 1):
        assert (episodes(PRESETS["probe-value"], [action])[1].reward == 1).all()


def test_discount_rewards_the_second_step_only_and_shows_which_it_is():
    observations, steps = episodes(PRESETS["probe-discount"], [0, 1])
    assert (steps.reward == jnp.array([0, 1])).all()
    assert (observations[:, :2, 0] == jnp.array([0, 1])).all()


def test_policy_rewards_the_matching_action():
    observations, steps = episodes(PRESETS["probe-policy"], [1])
    assert set(np.unique(observations)) == {-1, 1}
    np.testing.assert_array_equal(steps.reward[:, 0], observations[:, 0, 0] == 1)


def test_memory_shows_the_cue_once_and_asks_for_it_last():
    observations, steps = episodes(PRESETS["probe-memory"], [1] * 5)
    cue = observations[:, 0, 0]
    assert set(np.unique(cue)) == {-1, 1}
    assert (observations[:, 1:, 0] == 0).all()
    assert (observations[:, :5, 1] == jnp.array([0, 0, 0, 0, 1])).all()
    assert (steps.reward[:, :4] == 0).all()
    np.testing.assert_array_equal(steps.reward[:, 4], cue == 1)


def test_bandit_rewards_the_best_arm_and_shows_nothing():
    env = PRESETS["probe-bandit"]
    assert env.action_space.n == 5
    assert env.tasks("train").tolist() == env.tasks("test").tolist() == [0, 1, 2, 3, 4]
    seen = []
    for arm in range(5):
        observations, steps = episodes(env, [0, 3, 3, 4], task=arm, count=2)
        assert steps.reward[0].tolist() == [arm == 0, arm == 3, arm == 3, arm == 4]
        seen.append(observations)
    assert len(np.unique(seen)) == 1


@pytest.mark.parametrize("name, expert", [(n, n not in ("probe-value", "probe-discount")) for n in PRESETS])
def test_which_probes_have_an_expert(name, expert):
    assert PRESETS[name].has_expert == expert
