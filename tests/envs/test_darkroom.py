"""Darkroom and Key-to-Door: dynamics, splits and experts against hand-worked cases and plain-Python references."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.environment.base import num_tasks, split_hash
from relic_jax.envs.darkroom.env import PRESETS, Darkroom, DarkroomTask
from relic_jax.envs.darkroom.key_to_door import PRESETS as KEY_PRESETS
from relic_jax.envs.darkroom.key_to_door import KeyToDoorTask

DPT = PRESETS["darkroom-dpt"]
KEY_TO_DOOR = KEY_PRESETS["key-to-door-9"]
EFFECTS = [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]


def goal_task(x, y):
    return DarkroomTask(np.array([x, y], np.int32))


@functools.partial(jax.jit, static_argnames="env")
def play(env, task, actions):
    """The TimeSteps of a fixed action sequence (int32 [T]) from reset, and the first TimeStep. It runs past the end."""
    state, first = env.reset(jax.random.key(0), task)

    def step(state, action):
        return env.step(jax.random.key(1), state, action, task)

    return first, jax.lax.scan(step, state, actions)[1]


@functools.partial(jax.jit, static_argnames="env")
def play_expert(env, task):
    """The TimeSteps of one expert episode of full length."""

    def step(state, _):
        return env.step(jax.random.key(1), state, env.optimal_action(state, task), task)

    return jax.lax.scan(step, env.reset(jax.random.key(0), task)[0], length=env.horizon)[1]


def test_hand_worked_transitions():
    first, steps = play(DPT, goal_task(1, 1), jnp.array([0, 2, 4, 1, 3]))
    assert first.observation.dtype == jnp.float32
    assert first.observation.tolist() == [0, 0]
    assert not first.terminated and not first.truncated and first.reward == 0
    assert steps.observation.tolist() == [[1, 0], [1, 1], [1, 1], [0, 1], [0, 0]]
    assert steps.reward.tolist() == [0, 1, 1, 0, 0]  # for entering the goal and for staying on it, not for leaving
    assert not steps.terminated.any() and not steps.truncated.any()


def test_moves_are_clipped_at_all_four_edges():
    room = Darkroom("room", width=3, height=2, horizon=20)
    _, steps = play(room, goal_task(2, 1), jnp.array([1, 3, 0, 0, 0, 2, 2]))
    assert steps.observation.tolist() == [[0, 0], [0, 0], [1, 0], [2, 0], [2, 0], [2, 1], [2, 1]]


def test_starts():
    assert play(PRESETS["darkroom-ad-9"], goal_task(0, 0), jnp.array([4]))[0].observation.tolist() == [4, 4]
    wide = Darkroom("wide", width=3, height=2, horizon=5, start="random")
    states, timesteps = jax.vmap(lambda key: wide.reset(key, goal_task(0, 0)))(jax.random.split(jax.random.key(0), 200))
    cells = {tuple(cell) for cell in timesteps.observation.tolist()}
    assert cells == {(x, y) for x in range(3) for y in range(2)}
    np.testing.assert_array_equal(states.position, timesteps.observation)


def test_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"start is 'corner'; allowed: '\(0,0\)', 'centre', 'random'"):
        Darkroom("room", 3, 3, 5, start="corner")


def test_time_limit_truncates_and_never_terminates():
    _, steps = play(DPT, goal_task(0, 0), jnp.full(100, 4))
    assert not steps.terminated.any()
    assert steps.truncated.tolist() == [False] * 99 + [True]


def test_goal_terminates_and_wins_over_the_time_limit():
    room = Darkroom("room", width=4, height=4, horizon=3, end_on_goal=True)
    _, steps = play(room, goal_task(3, 0), jnp.array([0, 0, 0]))
    assert steps.terminated.tolist() == [False, False, True]
    assert not steps.truncated.any()
    _, steps = play(room, goal_task(3, 3), jnp.array([0, 0, 0]))
    assert not steps.terminated.any()
    assert steps.truncated.tolist() == [False, False, True]


class ReferenceDarkroom:
    """Darkroom in plain Python: one agent, no arrays."""

    def __init__(self, env, goal, action_map):
        self.env, self.goal, self.action_map = env, goal, action_map
        starts = {"(0,0)": (0, 0), "centre": (env.width // 2, env.height // 2)}
        self.x, self.y = starts[env.start]
        self.count = 0

    def step(self, action):
        dx, dy = EFFECTS[self.action_map[action]]
        self.x = min(max(self.x + dx, 0), self.env.width - 1)
        self.y = min(max(self.y + dy, 0), self.env.height - 1)
        self.count += 1
        reached = (self.x, self.y) == self.goal
        terminated = reached and self.env.end_on_goal
        truncated = self.count >= self.env.horizon and not terminated
        return (self.x, self.y), float(reached), terminated, truncated


@pytest.mark.parametrize("name", ["darkroom-dpt", "darkroom-ad-9", "darkroom-hard-17", "darkroom-permuted"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_agrees_with_a_plain_python_reference(name, data):
    # Goals near the starts are drawn often, so that sequences reach them; 24 steps meet the time limit of 20.
    env = PRESETS[name]
    actions = data.draw(st.lists(st.integers(0, 4), min_size=24, max_size=24))
    goal = data.draw(st.tuples(st.integers(0, env.width - 1), st.integers(0, env.height - 1)))
    goal = data.draw(st.sampled_from([goal, (1, 0), (1, 1), (4, 5)]))
    action_map = data.draw(st.permutations(range(5))) if env.permuted else list(range(5))
    task = DarkroomTask(np.array(goal, np.int32), np.array(action_map, np.int32) if env.permuted else None)
    _, steps = play(env, task, jnp.array(actions))
    reference = ReferenceDarkroom(env, goal, action_map)
    for i, action in enumerate(actions):
        observation, reward, terminated, truncated = reference.step(action)
        assert tuple(steps.observation[i].tolist()) == observation
        assert (steps.reward[i], steps.terminated[i], steps.truncated[i]) == (reward, terminated, truncated)
        if terminated or truncated:
            break


def test_dpt_split_is_the_published_one():
    train, test = DPT.tasks("train"), DPT.tasks("test")
    assert test.goal[:5].tolist() == [[2, 5], [3, 7], [8, 1], [4, 6], [3, 9]]
    assert train.goal.dtype == np.int32 and train.goal.shape == (80, 2) and test.goal.shape == (20, 2)
    goals = {tuple(goal) for goal in np.concatenate([train.goal, test.goal]).tolist()}
    assert goals == set(itertools.product(range(10), repeat=2))


# Every published result depends on these splits; a change here is a new version of the preset.
SPLITS = {
    "darkroom-dpt": (80, "7751ebc586a2", 20, "f117b3c869d9"),
    "darkroom-ad-9": (72, "5b8348e00ce3", 9, "5871bc41f73e"),
    "darkroom-ad-9-random": (72, "5b8348e00ce3", 9, "5871bc41f73e"),
    "darkroom-hard-17": (260, "63987f50bbc2", 29, "68d935635035"),
    "darkroom-hard-17-random": (260, "63987f50bbc2", 29, "68d935635035"),
    "darkroom-large-40x20": (640, "dfd0809eeee3", 160, "a1909d6e68f0"),
    "darkroom-permuted": (96, "21a97204616e", 24, "50bdf2c264f5"),
    "key-to-door-9": (6156, "37d9d293b766", 324, "829ee69286f0"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_frozen(name):
    env = (PRESETS | KEY_PRESETS)[name]
    train, test = env.tasks("train"), env.tasks("test")
    assert (num_tasks(train), split_hash(train), num_tasks(test), split_hash(test)) == SPLITS[name]


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_disjoint_and_inside_the_grid(name):
    env = (PRESETS | KEY_PRESETS)[name]
    rows = {
        split: [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(env.tasks(split))]
        for split in ("train", "test")
    }
    train, test = ({tuple(row) for row in np.concatenate(rows[split], 1).tolist()} for split in ("train", "test"))
    assert not train & test
    low, high = env.observation_range
    for task in (env.tasks("train"), env.tasks("test")):
        cells = [task.goal] if isinstance(task, DarkroomTask) else [task.start, task.key, task.door]
        for cell in cells:
            assert (cell >= low).all() and (cell <= high).all()


def test_permuted_tasks_are_all_action_maps_with_the_goal_in_the_far_corner():
    env = PRESETS["darkroom-permuted"]
    train, test = env.tasks("train"), env.tasks("test")
    maps = {tuple(row) for row in np.concatenate([train.action_map, test.action_map]).tolist()}
    assert maps == set(itertools.permutations(range(5)))
    assert (train.goal == 9).all() and (test.goal == 9).all()


def test_expert_walks_along_x_then_y_then_stays():
    steps = play_expert(DPT, goal_task(2, 1))
    assert steps.observation[:5].tolist() == [[1, 0], [2, 0], [2, 1], [2, 1], [2, 1]]


@pytest.mark.parametrize("goal", [(0, 0), (9, 0), (0, 9), (9, 9), (2, 5)])
def test_expert_return_is_101_minus_the_distance(goal):
    expected = min(101 - sum(goal), 100)  # at the origin the first step already is on the goal
    assert play_expert(DPT, goal_task(*goal)).reward.sum() == expected


def test_expert_sees_through_every_action_map():
    env = PRESETS["darkroom-permuted"]
    returns = jax.vmap(lambda task: play_expert(env, task).reward.sum())(env.tasks("train"))
    assert (returns == 101 - 18).all()


def test_observation_spec_and_range_describe_the_observations():
    env = PRESETS["darkroom-large-40x20"]
    low, high = env.observation_range
    assert low.tolist() == [0, 0] and high.tolist() == [39, 19]
    _, steps = play(env, goal_task(0, 0), jnp.array([0] * 45 + [2] * 25))
    spec = env.observation_spec
    assert steps.observation.shape[1:] == spec.shape and steps.observation.dtype == spec.dtype
    assert steps.observation[-1].tolist() == high.tolist()


def test_environments_are_hashable_values():
    assert dataclasses.replace(DPT) == DPT and hash(DPT) == hash(dataclasses.replace(DPT))
    assert dataclasses.replace(DPT, horizon=50) != DPT


def key_task(start, key, door):
    return KeyToDoorTask(*(np.array(cell, np.int32) for cell in (start, key, door)))


def test_key_then_door_is_rewarded_once_each_and_ends_on_the_door():
    task = key_task((1, 0), key=(2, 0), door=(3, 0))
    _, steps = play(KEY_TO_DOOR, task, jnp.array([0, 4, 1, 0, 0]))  # key, stay on it, leave, return, door
    assert steps.reward.tolist() == [1, 0, 0, 0, 1]
    assert steps.terminated.tolist() == [False, False, False, False, True]
    assert not steps.truncated.any()


def test_the_door_is_worth_nothing_without_the_key():
    task = key_task((0, 0), key=(2, 0), door=(1, 0))
    _, steps = play(KEY_TO_DOOR, task, jnp.array([0, 0, 1]))
    assert steps.reward.tolist() == [0, 1, 1]
    assert steps.terminated.tolist() == [False, False, True]


def test_success_needs_both_rewards_even_if_the_key_is_found_on_the_last_step():
    task = key_task((0, 0), key=(1, 0), door=(8, 8))
    _, steps = play(KEY_TO_DOOR, task, jnp.array([4] * 49 + [0]))
    last = jax.tree.map(lambda leaf: leaf[-1], steps)
    assert last.reward == 1 and last.truncated and not last.terminated
    assert not KEY_TO_DOOR.success(last, steps.reward.sum())
    assert KEY_TO_DOOR.success(last, jnp.float32(2))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_key_to_door_agrees_with_a_plain_python_reference(data):
    # Everything close together, so that random actions meet the key and the door.
    cell = st.tuples(st.integers(0, 2), st.integers(0, 1))
    start = data.draw(cell)
    key, door = data.draw(st.lists(cell, min_size=2, max_size=2, unique=True))
    actions = data.draw(st.lists(st.integers(0, 4), min_size=60, max_size=60))
    _, steps = play(KEY_TO_DOOR, key_task(start, key, door), jnp.array(actions))
    position, has_key = start, False
    for i, action in enumerate(actions):
        position = tuple(min(max(p + d, 0), 8) for p, d in zip(position, EFFECTS[action], strict=True))
        reward = terminated = has_key and position == door
        if not has_key and position == key:
            has_key = reward = True
        truncated = i + 1 == 50 and not terminated
        assert tuple(steps.observation[i].tolist()) == position
        assert (steps.reward[i], steps.terminated[i], steps.truncated[i]) == (reward, terminated, truncated)
        if terminated or truncated:
            break
