"""Episodes of environments that outlast their horizon are truncated there, with one warning."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import horizon
from relic_jax.bridge.pool import Pool, PoolConfig
from relic_jax.config import EvalConfig
from relic_jax.environment.base import Discrete, Environment, TimeStep, VisualEnvironment, first_timestep
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.environment.repeat import repeated
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.envs.darkroom.env import Darkroom
from relic_jax.evaluation import in_context_curves
from relic_jax.rl.train import prepare, train

JITTED = [name for name in registry.names() if registry.TABLE[name].source.endswith(":PRESETS")]


@dataclasses.dataclass(frozen=True)
class Endless(Environment):
    """Counts, pays 1 a step, and ends only at the step that is the task, by itself. What is seen is the count."""

    name: str = "endless"
    horizon: int = 10

    action_space = Discrete(2)
    observation_spec = jax.ShapeDtypeStruct((1,), jnp.float32)

    def reset(self, key, task):
        return jnp.zeros((), jnp.int32), first_timestep(jnp.zeros(1))

    def step(self, key, state, action, task):
        state = state + 1
        ended = state == task
        return state, TimeStep(jnp.float32(state)[None], jnp.ones(()), ended, jnp.zeros((), bool))

    def success(self, timestep, episode_return):
        return episode_return == self.horizon

    def tasks(self, split):
        return np.array([1000, 4], np.int32)


@dataclasses.dataclass(frozen=True)
class EndlessPicture(VisualEnvironment):
    """The same, apart in dynamics and looking."""

    name: str = "endless-picture"
    horizon: int = 10

    action_space = Discrete(2)
    observation_spec = jax.ShapeDtypeStruct((1,), jnp.float32)

    def start(self, key, task):
        return jnp.zeros((), jnp.int32)

    def transition(self, key, state, action, task):
        state, timestep = Endless.step(self, key, state, action, task)
        return state, dataclasses.replace(timestep, observation=None)

    def observe(self, state, task):
        return state, jnp.float32(state)[None]

    tasks = Endless.tasks


@functools.partial(jax.jit, static_argnums=(0, 1))
def played(trials, steps):
    """TrialSteps and TrialStates after each of `steps` steps in both tasks."""

    def step(state, key):
        state, out = trials.step(key, state, jnp.zeros(2, jnp.int32))
        return state, (out, state)

    start = trials.reset(jax.random.key(0), jnp.asarray(trials.env.tasks("train")))
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(1), steps))[1]


@pytest.mark.parametrize("env", [Endless(), EndlessPicture()], ids=["plain", "visual"])
@pytest.mark.parametrize("times", [1, 3])
def test_trials_truncate_at_the_horizon(env, times):
    """Of 10 steps: 10 at one step an action; 3, 3, 3 and 1 at three."""
    steps, states = played(Trials(repeated(env, times)), 24)
    length = 10 if times == 1 else 4
    ends = [(step + 1) % length == 0 for step in range(24)]
    assert steps.truncated[:, 0].tolist() == ends == steps.cut[:, 0].tolist()
    assert not steps.terminated[:, 0].any()
    assert (steps.episode_return[:, 0] * jnp.array(ends)).max() == 10 == steps.final_observation[length - 1, 0, 0]
    assert states.first[:, 0].tolist() == ends and states.observation[length - 1, 0, 0] == 0
    assert not (steps.truncated | steps.cut)[:, 1].any()  # it ends itself, after 4 steps
    assert steps.terminated[:, 1].tolist() == [(step + 1) % (4 if times == 1 else 2) == 0 for step in range(24)]


def test_the_count_follows_from_the_stored_steps():
    trials = Trials(Endless())
    steps, states = played(trials, 24)
    ended = (steps.terminated | steps.truncated).T
    for filled in (1, 9, 10, 24):
        after = jax.tree.map(lambda x, last=filled - 1: x[last], states)
        stored = dataclasses.replace(after, episode_steps=None)
        later = ended.at[:, filled:].set(True)  # what is not filled is not read
        assert trials.counting(stored, later, filled).episode_steps.tolist() == after.episode_steps.tolist()
    assert trials.counting(stored, ended, 0).episode_steps.tolist() == [0, 0]


def test_lines_are_those_of_truncated_episodes():
    line = reference_returns(Endless(), "train", episodes=2).random
    assert (line.mean_return, line.success_rate) == (7, 0.5)


@pytest.mark.slow
def test_training_and_evaluation_go_on_and_say_it_once(tiny, tmp_path, caplog):
    horizon.warn.cache_clear()
    env = Endless(horizon=5)
    config = tiny(env="python:nowhere:ENDLESS", total_steps=256)
    setup, records = prepare(config, env), []

    class Keep:
        def log(self, record, times):
            records.append(record)

        def close(self):
            pass

    with caplog.at_level(logging.WARNING):
        result = train(setup, tmp_path, lambda done: Keep(), resume=False)
        curves = in_context_curves(
            setup.policy, result.state.params, env, EvalConfig(episodes=1, tasks=2), split="test"
        )
    lines = [line for line in caplog.messages if "horizon" in line]
    assert lines == ["env 'endless': episodes that outlast its horizon of 5 steps are truncated there"]
    np.testing.assert_array_equal(curves.returns, [[5], [4]])
    assert sum(record["cut_episodes"] for record in records) > 0
    assert all(record["episodes"] >= 4 * 16 // 5 - 4 and 4 <= record["return"] <= 5 for record in records)
    assert result.state.trial.episode_steps is None  # checkpoints are what they were


def test_workers_truncate_at_the_horizon_and_say_it_once(caplog):
    horizon.warn.cache_clear()
    entry, options = "relic_jax.experiments.benchmark.frames:Frames", {"size": 4, "horizon": 3}
    with (
        caplog.at_level(logging.WARNING),
        Pool(PoolConfig(entry, options, 1, 2)) as pool,
    ):
        pool.reset([{}] * 2, [0, 1])
        ends = []
        for _ in range(7):
            pool.send(np.zeros(2))
            ends.append(pool.receive().truncated.tolist())
        pool.reset([{}] * 2, [0, 1], [0, 0], [[0, 0], []])  # the first goes on after two steps
        pool.send(np.zeros(2))
        assert pool.receive().truncated.tolist() == [True, False]
    assert ends == [[step % 3 == 2] * 2 for step in range(7)]
    assert caplog.messages == ["env 'frames': episodes that outlast its horizon of 3 steps are truncated there"]


@pytest.mark.parametrize("name", JITTED)
def test_what_promises_to_end_in_time_does(name):
    """Its dynamics alone, with actions that seldom end anything."""
    env = registry.make(name)
    assert env.ends_in_time and Trials(env).env.ends_in_time
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), env.tasks("train"))
    move = env.transition if isinstance(env, VisualEnvironment) else env.step

    @jax.jit
    def ended(action):
        def step(state, key):
            state, timestep = move(key, state, action, task)
            return state, timestep.terminated | timestep.truncated

        start = (
            env.start(jax.random.key(0), task)
            if isinstance(env, VisualEnvironment)
            else env.reset(jax.random.key(0), task)[0]
        )
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(1), env.horizon))[1].any()

    assert ended(jnp.full(env.action_space.shape, env.action_space.n - 1, env.action_space.dtype))


def test_own_dynamics_do_not_inherit_the_promise():
    class Mine(Darkroom):
        def step(self, key, state, action, task):
            return super().step(key, state, action, task)

    class Named(Darkroom):
        pass

    assert Darkroom.ends_in_time and Named.ends_in_time and not Mine.ends_in_time
