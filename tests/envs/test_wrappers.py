"""Trials: what happens between episodes, and what must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.darkroom.env import Darkroom, DarkroomTask
from envs.wrappers import Trials, select

# The agent needs two steps to the goal of task 0 and three to that of task 1; an episode has three.
GOALS = DarkroomTask(np.array([[2, 0], [3, 0]], np.int32))


def room(**options):
    return Darkroom("room", width=5, height=5, horizon=3, **options)


@functools.partial(jax.jit, static_argnames="trials")
def run(trials, actions, tasks=GOALS, seed=0):
    """Plays actions (int32 [T, B]). Returns TrialStates before each step and after the last [T + 1], TrialSteps [T]."""
    reset_key, steps_key = jax.random.split(jax.random.key(seed))
    start = trials.reset(reset_key, tasks)

    def step(state, inputs):
        key, action = inputs
        next_state, out = trials.step(key, state, action)
        return next_state, (next_state, out)

    _, (states, steps) = jax.lax.scan(step, start, (jax.random.split(steps_key, len(actions)), actions))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, states), steps


def right(steps):
    return jnp.zeros((steps, 2), jnp.int32)


def test_first_step_of_a_trial():
    states, _ = run(Trials(room()), right(1))
    assert states.first[0].all()
    assert states.previous_action[0].tolist() == [-1, -1] and states.previous_reward[0].tolist() == [0, 0]
    assert states.observation[0].tolist() == [[0, 0], [0, 0]]


def test_truncation_resets_every_episode_and_keeps_the_task():
    states, steps = run(Trials(room()), right(6))
    assert not steps.terminated.any()
    assert steps.truncated[:, 0].tolist() == [False, False, True] * 2
    assert states.first[:, 0].tolist() == [True, False, False] * 2 + [True]
    assert states.observation[:, 0, 0].tolist() == [0, 1, 2] * 2 + [0]
    np.testing.assert_array_equal(states.task.goal, np.broadcast_to(GOALS.goal, (7, 2, 2)))


def test_final_observation_is_the_one_before_the_reset():
    states, steps = run(Trials(room()), right(3))
    assert steps.final_observation[2].tolist() == [[3, 0], [3, 0]]
    assert states.observation[3].tolist() == [[0, 0], [0, 0]]


def test_termination_and_truncation_are_told_apart_and_reset_only_their_own_row():
    states, steps = run(Trials(room(end_on_goal=True)), right(4))
    assert steps.terminated.tolist() == [[False, False], [True, False], [False, True], [True, False]]
    assert not steps.truncated.any()
    assert states.observation[:, :, 0].tolist() == [[0, 0], [1, 1], [0, 2], [1, 0], [0, 1]]
    _, steps = run(Trials(room(end_on_goal=True)), jnp.full((3, 2), 2))
    assert steps.truncated[2].all() and not steps.terminated.any()


def test_returns_are_per_episode():
    states, steps = run(Trials(room()), jnp.tile(jnp.array([[0], [0], [4]]), (2, 2)))  # right, right, stay
    assert steps.episode_return[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert states.episode_return[:, 0].tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert steps.success[2].tolist() == [True, False]


@pytest.mark.parametrize("shown, expected", [(False, 0.0), (True, 1.0)])
def test_last_reward_of_an_episode_is_hidden_unless_asked_for(shown, expected):
    states, steps = run(Trials(room(), show_last_reward=shown), jnp.tile(jnp.array([[0], [0], [4]]), (1, 2)))
    assert steps.reward[:, 0].tolist() == [0, 1, 1]
    assert states.previous_reward[:, 0].tolist() == [0, 0, 1, expected]
    assert states.previous_action[:, 0].tolist() == [-1, 0, 0, -1]


def test_random_starts_differ_between_episodes_rows_and_seeds():
    trials = Trials(room(start="random"))
    starts = [run(trials, right(60), seed=seed)[0].observation[::3] for seed in (0, 1)]
    assert len(np.unique(starts[0][:, 0], axis=0)) > 5
    assert (starts[0][:, 0] != starts[0][:, 1]).any()
    assert (starts[0] != starts[1]).any()


def test_select_chooses_rows_of_any_rank():
    condition = jnp.array([True, False])
    chosen = select(
        condition, {"a": jnp.ones((2, 3, 4)), "b": jnp.ones(2)}, {"a": jnp.zeros((2, 3, 4)), "b": jnp.zeros(2)}
    )
    assert chosen["b"].tolist() == [1, 0]
    assert (chosen["a"][0] == 1).all() and (chosen["a"][1] == 0).all()
