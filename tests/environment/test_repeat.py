"""Action repeat, of plain environments and of those whose observations are expensive, and wrappers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from summing import Add

from relic_jax.config import ConfigError
from relic_jax.environment import (
    ActionRepeat,
    Discrete,
    Environment,
    Image,
    TimeStep,
    Trials,
    VisualEnvironment,
    VisualWrapper,
    Wrapper,
    repeated,
)
from relic_jax.environment.repeat import VisualRepeat
from relic_jax.envs.darkroom.env import Darkroom
from relic_jax.envs.registry import make


def test_repeat_sums_rewards_and_stops_where_the_episode_ends():
    env = repeated(Add(horizon=5), 3)
    assert (env.horizon, env.name, env.has_expert) == (2, "add", False) and hash(env) == hash(repeated(Add(), 3))
    action = jnp.array([1.0, 0.5])
    state, _ = env.reset(jax.random.key(0), jnp.float32(100))
    state, first = env.step(jax.random.key(1), state, action, jnp.float32(100))
    assert (float(first.reward), bool(first.truncated), bool(first.terminated)) == (3.0, False, False)
    np.testing.assert_allclose(first.observation, [3.0, 1.5])
    state, second = env.step(jax.random.key(2), state, action, jnp.float32(100))  # steps 4 and 5, then the time is up
    assert (float(second.reward), bool(second.truncated), int(state[1])) == (2.0, True, 5)
    np.testing.assert_allclose(second.observation, [5.0, 2.5])
    state, _ = env.reset(jax.random.key(0), jnp.float32(1.5))
    state, ended = env.step(jax.random.key(1), state, action, jnp.float32(1.5))
    assert (float(ended.reward), bool(ended.terminated), int(state[1])) == (2.0, True, 2)


def test_repeat_of_one_is_the_environment_and_of_none_an_error():
    env = Add()
    assert repeated(env, 1) is env and isinstance(repeated(env, 2), ActionRepeat)
    with pytest.raises(ConfigError, match=r"trial\.action_repeat is 0; allowed: 1 or more"):
        repeated(env, 0)


def test_repeat_keeps_expensive_resets():
    class Expensive(Add):
        expensive_reset = True

    assert repeated(Expensive(), 2).expensive_reset and not repeated(Add(), 2).expensive_reset


def test_repeat_passes_the_expert_and_the_drawing_on():
    grid = Darkroom("grid", 4, 4, 8)
    env = repeated(grid, 2)
    task = jax.tree.map(lambda x: x[0], grid.tasks("test"))
    state, _ = env.reset(jax.random.key(0), task)
    assert env.has_expert and int(env.optimal_action(state, task)) == int(grid.optimal_action(state, task))
    np.testing.assert_array_equal(env.tasks("train").goal, grid.tasks("train").goal)


# --- image environments ---


@struct.dataclass
class Seen:
    """The state of `Pictures`. observed: how often the state was observed."""

    place: jax.Array
    step: jax.Array
    observed: jax.Array


@dataclasses.dataclass(frozen=True)
class Pictures(VisualEnvironment):
    """A random walk to the place that is the task. Observations are images; `endless` has no time limit of its own."""

    name: str = "pictures"
    horizon: int = 10
    endless: bool = False
    masked: bool = False

    observation_spec = Image((2, 2, 1), jnp.uint8)
    action_space = Discrete(3)

    @property
    def masks_actions(self):
        return self.masked

    @property
    def ends_in_time(self):
        return not self.endless

    def tasks(self, split):
        return np.array([4, 7, 99, 99, 11], np.int32)

    def start(self, key, task):
        zero = jnp.zeros((), jnp.int32)
        return Seen(jax.random.randint(key, (), 0, 2), zero, zero)

    def restart(self, key, state, task):
        return self.start(key, task).replace(observed=state.observed)

    def transition(self, key, state, action, task):
        place = state.place + jnp.where(action == 2, -1, action) + jax.random.randint(key, (), 0, 2)
        state = state.replace(place=place, step=state.step + 1)
        arrived = place >= task
        over = jnp.zeros((), bool) if self.endless else (state.step >= self.horizon) & ~arrived
        return state, TimeStep(None, place.astype(jnp.float32) / 8, arrived, over)

    def observe(self, state, task):
        image = jnp.full((2, 2, 1), state.place, jnp.uint8)
        return state.replace(observed=state.observed + 1), image

    def legal(self, state, task):
        """Action 1 is illegal at every third place."""
        return jnp.arange(3) != jnp.where(state.place % 3 == 2, 1, 3) if self.masked else None

    def metrics(self, state):
        return {"place": state.place.astype(jnp.float32)}


def by_hand(env, times, key, state, action, task, taken=None):
    """An action that lasts `times` steps, each of which is observed. taken: steps of the environment so far, or None.

    Returns (state, TimeStep, number of steps, whether the horizon cut the episode).
    """
    reward, cut = jnp.float32(0), False
    for count, step_key in enumerate(jax.random.split(key, times), 1):
        if taken is None:
            state, timestep = env.step(step_key, state, action, task)
        else:
            state, timestep, cut = env.step_within(step_key, state, action, task, taken + count - 1)
        reward += timestep.reward
        illegal = timestep.legal is not None and not timestep.legal[action]
        if timestep.terminated or timestep.truncated or illegal:
            break
    return state, dataclasses.replace(timestep, reward=reward), count, cut


def unobserved(state):
    return state.replace(observed=0)


@pytest.mark.parametrize("options", [{}, {"masked": True}, {"endless": True}], ids=["plain", "masked", "endless"])
@pytest.mark.parametrize("task", [4, 7, 99])
def test_repeated_images_equal_stepping_by_hand(options, task):
    env, times = Pictures(**options), 3
    within = options.get("endless", False)
    wrapped = repeated(env, times)
    assert isinstance(wrapped, VisualRepeat) and wrapped.ends_in_time == (not options)
    step = jax.jit(wrapped.step_within if within else wrapped.step)
    task = jnp.int32(task)
    state, first = wrapped.reset(jax.random.key(0), task)
    same, expected = env.reset(jax.random.key(0), task)
    jax.tree.map(np.testing.assert_array_equal, (state, first), (same, expected))
    lengths, taken = [], jnp.int32(0)
    for index in range(10):
        action, key = jnp.int32(index % 2), jax.random.key(index)
        if expected.legal is not None and not expected.legal[action]:
            action = jnp.int32(0)
        same, expected, length, cut = by_hand(env, times, key, same, action, task, 3 * index if within else None)
        state, timestep, *rest = step(key, state, action, task, *((taken,) if within else ()))
        jax.tree.map(np.testing.assert_array_equal, unobserved(state), unobserved(same))
        jax.tree.map(np.testing.assert_array_equal, timestep, expected)
        assert not rest or bool(rest[0]) == bool(cut)
        lengths.append(length)
        taken += 1
        if expected.terminated or expected.truncated:
            break
    assert bool(timestep.terminated) == (int(task) < 99) and int(state.observed) == 1 + len(lengths)
    if int(task) == 99:  # truncated at step 10, inside a repeat
        assert bool(timestep.truncated) and sum(lengths) == 10
        assert lengths == ([3, 1, 3, 3] if "masked" in options else [3, 3, 3, 1])  # a mask cut the second one short


@functools.partial(jax.jit, static_argnums=(0, 1))
def played(env, steps):
    """TrialStates before and TrialSteps of `steps` steps in all tasks."""
    tasks = jnp.asarray(env.tasks("train"))
    trials = Trials(env)

    def step(state, key):
        action = jnp.zeros(len(tasks), jnp.int32) if state.legal is None else state.legal[:, 1].astype(jnp.int32)
        after, out = trials.step(key, state, action)
        return after, (state, out)

    start = trials.reset(jax.random.key(0), tasks)
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(1), steps))[1]


@pytest.mark.parametrize("options", [{}, {"masked": True}, {"endless": True}], ids=["plain", "masked", "endless"])
def test_trials_of_repeated_images_observe_each_state_once(options):
    env = Pictures(**options)
    states, steps = played(repeated(env, 3), 20)
    plain_states, plain_steps = played(ActionRepeat(env, 3), 20)  # every repeated frame is rendered
    ended = steps.terminated | steps.truncated
    assert steps.terminated.any() and steps.truncated.any() and not ended.all(1).any()
    for name in ("reward", "terminated", "truncated", "episode_return", "success", "metrics", "cut"):
        jax.tree.map(np.testing.assert_array_equal, getattr(steps, name), getattr(plain_steps, name))
    np.testing.assert_array_equal(states.observation, plain_states.observation)
    jax.tree.map(np.testing.assert_array_equal, states.legal, plain_states.legal)
    np.testing.assert_array_equal(
        steps.final_observation[steps.truncated], plain_steps.final_observation[steps.truncated]
    )
    np.testing.assert_array_equal(states.env.observed, np.arange(1, 21)[:, None] * np.ones(5, int))


def test_only_the_last_state_of_an_action_is_rendered():
    """The number of `observe`s in a compiled trial step does not grow with the repeat."""
    calls = []

    class Counted(Pictures):
        def observe(self, state, task):
            jax.debug.callback(lambda: calls.append(1))
            return super().observe(state, task)

    counts = {}
    for times in (1, 4):
        trials = Trials(repeated(Counted(horizon=100), times))
        tasks = jnp.array([99])
        state = jax.jit(trials.reset)(jax.random.key(0), tasks)
        jax.effects_barrier()
        calls.clear()
        state, _ = jax.jit(trials.step)(jax.random.key(1), state, jnp.zeros(1, jnp.int32))
        jax.effects_barrier()
        counts[times] = len(calls)
        assert int(state.env.step[0]) == times
    assert counts == {1: 1, 4: 1}


@pytest.mark.slow
def test_repeated_miniworld_equals_stepping_by_hand():
    env, task = make("miniworld-open"), None
    wrapped = repeated(env, 4)
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), env.tasks("test"))
    state, first = wrapped.reset(jax.random.key(0), task)
    step = jax.jit(env.step)
    same = state
    for index in range(3):
        key, action, reward = jax.random.key(index), jnp.int32(index), 0.0
        for step_key in jax.random.split(key, 4):
            same, expected = step(step_key, same, action, task)
            reward += float(expected.reward)
        state, timestep = jax.jit(wrapped.step)(key, state, action, task)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, same)
        assert float(timestep.reward) == pytest.approx(reward)
        for name in expected.observation:
            difference = np.abs(np.float32(timestep.observation[name]) - np.float32(expected.observation[name]))
            assert (difference > 1e-5).mean() < 1e-3  # pixels at edges round differently when compiled differently
    assert first.observation["image"].shape == timestep.observation["image"].shape


# --- wrappers ---


def test_a_wrapper_forwards_every_member():
    env = Darkroom("grid", 4, 4, 8)
    wrapper = Wrapper(env)
    for name in dir(Environment):
        if not name.startswith("__") and name != "step_within":
            defined = getattr(Wrapper, name) is not getattr(Environment, name)
            assert defined, f"{name} is not forwarded"
    for name in ("name", "horizon", "expensive_reset", "ends_in_time", "on_host", "has_expert", "action_names"):
        assert getattr(wrapper, name) == getattr(env, name)
    assert hash(wrapper) == hash(Wrapper(Darkroom("grid", 4, 4, 8)))
    own = {"start", "restart", "transition", "observe", "legal"}
    assert all(getattr(VisualWrapper, name) is not getattr(VisualEnvironment, name) for name in own)


def test_a_visual_wrapper_changes_nothing():
    tasks = jnp.asarray(Pictures().tasks("train"))
    for wrapped in (VisualWrapper(Pictures()), Wrapper(Pictures())):
        states, steps = played(wrapped, 15)
        plain_states, plain_steps = played(Pictures(), 15)
        np.testing.assert_array_equal(states.observation, plain_states.observation)
        jax.tree.map(np.testing.assert_array_equal, steps.reward, plain_steps.reward)
    assert states.first.shape == (15, len(tasks))


def test_a_wrapper_with_dynamics_of_its_own_does_not_promise_to_end_in_time():
    class Mine(Wrapper):
        def step(self, key, state, action, task):
            return super().step(key, state, action, task)

    grid = Darkroom("grid", 4, 4, 8)
    assert grid.ends_in_time and Wrapper(grid).ends_in_time and not Mine(grid).ends_in_time
