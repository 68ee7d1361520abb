"""Options of the houses: where episodes start, in which frame, and which categories a trial asks for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from houses import TINY, built, houses

from relic_jax.config import ConfigError, EnvConfig
from relic_jax.envs import registry
from relic_jax.envs.firstperson.house_walk import LEFT, TURN
from relic_jax.envs.firstperson.houses import PRESETS
from relic_jax.experiments.arguments import parse_env

TASK = jnp.int32(10_003)


def episodes(env, house, count, task=TASK):
    """First states of `count` episodes of the trial of `task` in a house."""
    first = env._episode(jax.random.key(0), house, task)
    restart = jax.jit(jax.vmap(lambda key: env.restart(key, first, task)))
    return jax.device_get(restart(jax.random.split(jax.random.key(1), count)))


def house_of(index):
    return jax.tree.map(lambda x: jnp.asarray(x[index]), houses())


def test_the_default_is_what_it_was():
    assert registry.make("house-objnav-small") == PRESETS["house-objnav-small"]
    env = PRESETS["house-objnav-medium"]
    assert (env.pose, env.view, env.asked) == ("episode", "image", None)
    named = {"pose": "episode", "view": "image", "asked": None}
    assert registry.make(EnvConfig("house-objnav-medium", options=named)) == env


@pytest.mark.slow
def test_at_a_dock_all_episodes_of_a_trial_start_at_one_pose():
    env = dataclasses.replace(TINY, pose="dock")
    state, again = episodes(env, house_of(3), 32), episodes(env, house_of(3), 4, jnp.int32(10_004))
    assert (state.position == state.position[0]).all() and (state.heading == state.heading[0]).all()
    assert len(np.unique(state.target)) == 4
    assert (state.position[0] != again.position[0]).any() and state.heading[0] != again.heading[0]
    cell = np.floor(state.position[0] / 0.25).astype(int)
    assert houses().free[3][tuple(cell)]
    elsewhere = episodes(TINY, house_of(3), 32)
    assert len(np.unique(elsewhere.heading)) == 32 and len(np.unique(elsewhere.position, axis=0)) > 16


def test_the_frame_of_the_house():
    env = built(pose="house")
    assert sorted(env.observation_spec) == ["gps", "heading", "image", "target"]
    state = env._episode(jax.random.key(0), house_of(0), TASK)
    state = dataclasses.replace(state, position=jnp.array([1.0, 4.5]))
    for _ in range(2):
        state, _ = env.transition(jax.random.key(0), state, jnp.int32(LEFT), TASK)
    _, seen = jax.jit(env.observe)(state, TASK)
    np.testing.assert_allclose(seen["gps"], [1.0 - 3.0, 4.5 - 3.0], atol=1e-6)  # the house is 6 m wide
    angle = float(state.heading) + 2 * TURN
    np.testing.assert_allclose(seen["heading"], [np.cos(angle), np.sin(angle)], atol=1e-6)
    low, high = env.observation_range
    assert (low["gps"] == -3).all() and (high["gps"] == 3).all() and (low["heading"] == -1).all()


def test_symbols_have_a_heading_in_the_frame_of_the_episode():
    env = built(view="symbols")
    state = env._episode(jax.random.key(0), house_of(0), TASK)
    _, seen = env.observe(state, TASK)
    np.testing.assert_allclose(np.concatenate([seen["gps"], seen["heading"]]), [0, 0, 1, 0], atol=1e-6)
    state, _ = env.transition(jax.random.key(0), state, jnp.int32(LEFT), TASK)
    np.testing.assert_allclose(env.observe(state, TASK)[1]["heading"], [np.cos(TURN), np.sin(TURN)], atol=1e-6)


def test_a_trial_asks_for_the_first_categories_that_can_be_reached():
    env = dataclasses.replace(TINY, asked=2)
    for index in range(4):
        assert set(episodes(env, house_of(index), 64).target) == {0, 1}
    closed = dataclasses.replace(house_of(0), reachable=jnp.array([False, True, True, True]))
    assert set(episodes(env, closed, 64).target) == {1, 2}
    everything = dataclasses.replace(TINY, asked=4)
    jax.tree.map(np.testing.assert_array_equal, episodes(everything, house_of(1), 16), episodes(TINY, house_of(1), 16))


def test_tasks_ask_for_different_numbers_of_categories():
    env = dataclasses.replace(TINY, asked=(1, 3))
    for seed, number in ((10_004, 1), (10_005, 3)):
        assert len(np.unique(episodes(env, house_of(2), 64, jnp.int32(seed)).target)) == number


def test_rungs_are_numbers_of_categories_in_the_same_houses():
    env = dataclasses.replace(TINY, asked=3)
    assert env.rungs == {"asked": (1, 2, 3)} and dataclasses.replace(TINY, asked=(1, 2)).rungs == {"asked": ()}
    np.testing.assert_array_equal(env.rung_tasks("asked", 3), env.tasks("train"))
    task = jnp.asarray(TINY.rung_tasks("asked", 2)[17])
    assert task.dtype == jnp.int32 and TINY.rungs["asked"] == (1, 2, 3, 4)
    assert set(episodes(TINY, house_of(1), 64, task).target) == {0, 1}
    start = jax.jit(TINY.start)
    rung, whole = (start(jax.random.key(0), task) for task in (task, jnp.int32(17)))
    jax.tree.map(np.testing.assert_array_equal, rung.house, whole.house)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pose": "room"}, "env.pose is 'room'; allowed: 'episode', 'dock', 'house'"),
        ({"view": "depth"}, "env.view is 'depth'; allowed: 'image', 'symbols'"),
        ({"asked": 13}, "env.asked is 13; allowed: 1 to 12 for 'house-objnav-medium', several such numbers (1,2), or"),
        ({"asked": "1,x"}, "env.asked is '1,x'; allowed: 1 to 12 for"),
        ({"poses": "dock"}, "env.poses is unknown; allowed: asked, pose, reward_to, view; did you mean env.pose?"),
    ],
)
def test_wrong_options_get_one_line(options, message):
    with pytest.raises(ConfigError) as error:
        registry.make(EnvConfig("house-objnav-medium", options=options))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_options_on_the_command_line():
    arguments = ["--env.pose", "dock", "--env.view", "symbols", "--env.asked", "1,2"]
    parsed = parse_env(EnvConfig("house-objnav-small"), arguments, "relic-jax envs")
    env = registry.make(parsed)
    assert (env.pose, env.view, env.asked) == ("dock", "symbols", (1, 2))
