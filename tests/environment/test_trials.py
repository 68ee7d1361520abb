"""Trials: resets between episodes, bookkeeping, and environments with expensive observations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from relic_jax.environment.base import Discrete, Environment, TimeStep, VisualEnvironment
from relic_jax.environment.trials import Trials, replace_few, select
from relic_jax.envs.darkroom.env import Darkroom, DarkroomTask

# The agent needs two steps to the goal of task 0 and three to that of task 1; an episode has three.
GOALS = DarkroomTask(np.array([[2, 0], [3, 0]], np.int32))


def room(**options):
    return Darkroom("room", width=5, height=5, horizon=3, **options)


@functools.partial(jax.jit, static_argnames="trials")
def run(trials, actions, tasks=GOALS, seed=0):
    """Play actions, int32 [T, B]. Returns the T + 1 TrialStates and the T TrialSteps."""
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


def test_termination_and_truncation_are_distinguished_and_reset_only_their_row():
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


@struct.dataclass
class Seen:
    """The state of a walker. observations: how often it was observed, on which nothing else depends."""

    place: jax.Array
    step: jax.Array
    observations: jax.Array
    carried: jax.Array


@dataclasses.dataclass(frozen=True)
class Walk(VisualEnvironment):
    """A random walk that ends at the task's distance; the picture is a pytree."""

    name: str = "walk"
    horizon: int = 4

    @property
    def action_space(self):
        return Discrete(2)

    def start(self, key, task):
        zero = jnp.zeros((), jnp.int32)
        return Seen(jax.random.randint(key, (), -1, 2), zero, zero, jnp.arange(3.0))

    def restart(self, key, state, task):
        return self.start(key, task).replace(carried=state.carried)

    def transition(self, key, state, action, task):
        place = state.place + jax.random.randint(key, (), 0, 2) + action
        arrived = place >= task
        state = state.replace(place=place, step=state.step + 1)
        truncated = (state.step >= self.horizon) & ~arrived
        return state, TimeStep(None, arrived.astype(jnp.float32), arrived, truncated)

    def observe(self, state, task):
        picture = {"image": jnp.full((2, 2), state.place, jnp.uint8), "pose": (state.place + task).astype(jnp.float32)}
        return state.replace(observations=state.observations + 1), picture

    def metrics(self, state):
        return {"place": state.place.astype(jnp.float32)}


class Plain(Environment):
    """The same environment with dynamics and observations together."""

    action_space = Discrete(2)

    def __init__(self, env):
        self.horizon = env.horizon
        self.reset, self.step, self.success, self.metrics = env.reset, env.step, env.success, env.metrics


def test_separate_observations_change_nothing_but_their_number():
    tasks, actions = jnp.array([2, 3, 9]), jnp.tile(jnp.array([[0, 1, 0]]), (40, 1))
    (states, steps), (plain_states, plain_steps) = (run(Trials(env), actions, tasks) for env in (Walk(), Plain(Walk())))
    for name in ("reward", "terminated", "truncated", "episode_return", "success", "metrics"):
        jax.tree.map(np.testing.assert_array_equal, getattr(steps, name), getattr(plain_steps, name))
    jax.tree.map(np.testing.assert_array_equal, states.observation, plain_states.observation)
    np.testing.assert_array_equal(states.env.place, plain_states.env.place)
    assert steps.terminated.any() and steps.truncated.any()
    cut, going_on = steps.truncated, ~(steps.truncated | steps.terminated)
    for rows in (cut, going_on):  # the last observation is not used after a termination
        for key in ("image", "pose"):
            np.testing.assert_array_equal(steps.final_observation[key][rows], plain_steps.final_observation[key][rows])
    assert (states.env.observations == 1 + states.env.step).all()


@pytest.mark.parametrize("visual", [False, True])
@pytest.mark.parametrize("batch", [3, 40, 200])  # one block, blocks of the least size, blocks of more
def test_resetting_a_block_at_a_time_changes_nothing(visual, batch):
    class ExpensiveWalk(Walk):
        expensive_reset = True

    class ExpensivePlain(Plain):
        expensive_reset = True

    walk = Walk(horizon=8)
    expensive, cheap = (ExpensiveWalk(horizon=8), walk) if visual else (ExpensivePlain(walk), Plain(walk))
    row = jnp.arange(batch)
    tasks, actions = jnp.where(row % 20 == 1, 3, 99), jnp.tile(row % 3 == 1, (40, 1)).astype(jnp.int32)
    blocks, plain = (run(Trials(env), actions, tasks) for env in (expensive, cheap))
    jax.tree.map(np.testing.assert_array_equal, blocks, plain)
    ends = plain[1].terminated | plain[1].truncated
    assert not ends.any(axis=1).all() and ends.any(axis=0).all()
    ended = ends.sum(axis=1)
    assert ended.min() == 0 < jnp.median(ended) <= 0.05 * batch + 1 and ended.max() > 0.9 * batch - 1


@pytest.mark.parametrize(("batch", "block"), [(3, 3), (8, 8), (40, 8), (200, 25)])
def test_expensive_resets_are_made_for_a_block(batch, block):
    rows, numbers = jnp.ones(batch, bool), jnp.ones(batch)
    jaxpr = str(jax.make_jaxpr(replace_few, static_argnums=1)(rows, jnp.sin, (numbers,), numbers))
    assert f":f32[{block}] = sin" in jaxpr and jaxpr.count("= sin") == 1


def test_metrics_are_of_the_state_that_ended():
    _, steps = run(Trials(Walk()), jnp.ones((10, 1), jnp.int32), jnp.array([3]))
    assert (steps.metrics["place"][steps.terminated] >= 3).all() and steps.terminated.any()


def test_what_a_restart_carries_over_is_not_copied():
    trials, tasks = Trials(Walk()), jnp.array([2, 3])
    state = trials.reset(jax.random.key(0), tasks)
    jaxpr = jax.make_jaxpr(lambda s: trials.step(jax.random.key(0), s, jnp.zeros(2, jnp.int32))[0].env.carried)(state)
    assert "f32[2,3] = select_n" not in str(jaxpr)
    assert "i32[2] = select_n" in str(jaxpr)


def test_select_chooses_rows_of_any_rank():
    condition = jnp.array([True, False])
    chosen = select(
        condition, {"a": jnp.ones((2, 3, 4)), "b": jnp.ones(2)}, {"a": jnp.zeros((2, 3, 4)), "b": jnp.zeros(2)}
    )
    assert chosen["b"].tolist() == [1, 0]
    assert (chosen["a"][0] == 1).all() and (chosen["a"][1] == 0).all()
