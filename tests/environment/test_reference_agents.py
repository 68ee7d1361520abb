"""Scripted agents with a memory: whole trials inside jit against a plain Python loop."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import prng
from relic_jax.config import EvalConfig
from relic_jax.environment.base import Discrete, Environment, TimeStep, first_timestep
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING, play_reference_agents
from relic_jax.environment.repeat import repeated
from relic_jax.envs.gridobj.env import GridObj
from relic_jax.envs.registry import make
from relic_jax.experiments.run import agent_episodes

EPISODES = 6


@pytest.fixture(scope="module")
def small():
    """A small grid and one of its layouts, in a set of one."""
    env = GridObj("gridobj-small", 7, 4, 12)
    return env, jax.tree.map(lambda x: x[4:5], env.tasks("test"))


def loop(env, agent, tasks, seed=0):
    """Return (returns, successes, steps) of the episodes of one trial, from the same keys."""
    task = jax.tree.map(lambda x: jnp.asarray(x[0]), tasks)
    reset_key, key = jax.random.split(prng.key(seed))
    state, _ = env.reset(jax.random.split(reset_key, 1)[0], task)
    act, step, reset = jax.jit(agent.act), jax.jit(env.step), jax.jit(env.reset)
    memory, first, total, index, length, rows = agent.initial_memory(), True, 0.0, 0, 0, []
    while len(rows) < EPISODES:
        act_key, _, env_key = jax.random.split(jax.random.fold_in(key, index), 3)
        step_key, reset_key = (keys[0] for keys in jax.random.split(env_key, (2, 1)))
        memory, action = act(jax.random.split(act_key, 1)[0], memory, state, jnp.array(first), task)
        state, timestep = step(step_key, state, action, task)
        total, index, length = total + float(timestep.reward), index + 1, length + 1
        first = bool(timestep.terminated | timestep.truncated)
        if first:
            rows.append((total, bool(timestep.terminated), length))
            state, total, length = reset(reset_key, task)[0], 0.0, 0
    return np.array(rows).T


def test_trials_inside_jit_are_those_of_a_plain_loop(small):
    env, task = small
    played = play_reference_agents(env, task, EPISODES)
    assert list(played) == [FORGETFUL, REMEMBERING]
    for name, agent in env.reference_agents.items():
        returns, successes, lengths = loop(env, agent, task)
        np.testing.assert_allclose(played[name].returns[0], returns, rtol=1e-5)
        np.testing.assert_array_equal(played[name].successes[0], successes.astype(bool))
        np.testing.assert_array_equal(played[name].metrics["steps"][0], lengths)
    remembering, forgetful = (played[name].metrics["steps"] for name in (REMEMBERING, FORGETFUL))
    assert remembering[0, 0] == forgetful[0, 0] and (remembering != forgetful).any()


@dataclasses.dataclass(frozen=True)
class Counter:
    """An agent that chooses the number of steps that it has acted, which is legal only up to 2."""

    def initial_memory(self):
        return jnp.zeros((), jnp.int32)

    def act(self, key, memory, state, first, task):
        return memory + 1, memory


@dataclasses.dataclass(frozen=True)
class Masked(Environment):
    """Reward: the action. Task: the length of episodes. Only actions up to 2 are legal."""

    name = "masked"
    horizon = 9
    masks_actions = True
    observation_spec = jax.ShapeDtypeStruct((1,), jnp.float32)
    action_space = Discrete(20)
    reference_agents: ClassVar = {"counter": Counter()}
    legal = jnp.arange(20) <= 2

    def reset(self, key, task):
        return jnp.zeros((), jnp.int32), first_timestep(jnp.zeros(1), self.legal)

    def step(self, key, state, action, task):
        ended = state + 1 >= task
        return state + 1, TimeStep(jnp.zeros(1), action.astype(jnp.float32), ended, jnp.zeros((), bool), self.legal)

    def tasks(self, split):
        return np.array([1, 4], np.int32)


def test_illegal_actions_are_replaced_and_short_episodes_do_not_overwrite_results():
    env = Masked()
    played = play_reference_agents(env, env.tasks("test"), 5)["counter"]
    np.testing.assert_array_equal(played.returns[0, :3], [0, 1, 2])  # one step per episode, memory kept between them
    assert played.returns[0].max() <= 2 and 3 <= played.returns[1, 0] <= 5  # 0 + 1 + 2 and a legal one
    assert (played.returns[1] <= 8).all() and played.metrics == {}


def test_agents_play_the_trials_of_the_evaluation(small):
    env, _ = small
    config = EvalConfig(episodes=3, tasks=2, repeats=2)
    played = agent_episodes(env, "test", config)
    assert {name: x.returns.shape for name, x in played.items()} == {FORGETFUL: (4, 3), REMEMBERING: (4, 3)}
    assert agent_episodes(env, "test", dataclasses.replace(config, change_task_at=2)) == {}
    assert agent_episodes(make("darkroom-ad-9"), "test", config) == {}
    assert repeated(env, 2).reference_agents == env.reference_agents
