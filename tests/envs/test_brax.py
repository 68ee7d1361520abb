"""Tasks on brax: step for step beside brax's own loop, rewards from its state."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax.config import ConfigError
from relic_jax.environment.base import num_tasks
from relic_jax.envs import registry

NAMES = registry.names("relic_jax.envs.brax")


present = importlib.util.find_spec("brax") is not None
needs_brax = pytest.mark.skipif(not present, reason="brax is not installed")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_brax_is_one_line_that_names_the_extra(name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "brax" else find(n, *a))
    with pytest.raises(ConfigError, match=r"pip install relic-jax\[brax\]") as error:
        registry.make(name)
    assert name in str(error.value) and "\n" not in str(error.value)


@needs_brax
def test_backends_and_names():
    assert registry.make("halfcheetah-vel").backend == "spring"
    env = registry.make("ant-dir:mjx")
    assert (env.name, env.backend) == ("ant-dir:mjx", "mjx") and env == registry.make("ant-dir:mjx")
    with pytest.raises(ConfigError, match="env is 'ant-dir:foo'; allowed: ant-dir:spring"):
        registry.make("ant-dir:foo")
    line = str(registry.describe("ant-goal"))
    assert "horizon 200" in line and "actions of 8 numbers in [-1, 1]" in line


@needs_brax
@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_brax_and_splits_are_held_out(name):
    env = registry.make(name)
    assert env.sizes == (env.brax.observation_size, env.brax.action_size)
    train, test = env.tasks("train"), env.tasks("test")
    if name == "halfcheetah-dir":
        assert train.tolist() == test.tolist() == [-1, 1]
    else:
        assert (num_tasks(train), num_tasks(test)) == (100, 30)
        assert not {tuple(np.ravel(x)) for x in train} & {tuple(np.ravel(x)) for x in test}


@needs_brax
@pytest.mark.parametrize("name", NAMES)
def test_rewards_by_hand(name):
    env = registry.make(name)
    position, velocity = jnp.array([0.5, -1.0, 0.6]), jnp.array([2.0, 3.0, 0.1])
    action = jnp.array([0.5, -0.5] + [0.0] * (env.sizes[1] - 2))
    task, expected = {
        "halfcheetah-vel": (jnp.float32(1.25), -0.75 - 0.05 * 0.5),
        "halfcheetah-dir": (jnp.float32(-1), -2 - 0.05 * 0.5),
        "ant-dir": (jnp.float32(np.pi / 2), 3.0 - 0.5 * 0.5 + 1),
        "ant-goal": (jnp.array([2.0, 0.0]), -np.hypot(1.5, 1.0) - 0.1 * 0.5),
    }[name]
    assert float(env.earned(position, velocity, action, task)) == pytest.approx(expected, abs=1e-5)


@needs_brax
def test_equals_brax_step_for_step():
    """In one jit, because compiling is the cost. The last step is the one at the time limit."""
    env, steps = registry.make("halfcheetah-vel"), 4
    env = type(env)(env.name, env.backend, horizon=steps)
    task = jnp.float32(1.5)

    @jax.jit
    def both(key, actions):
        mine, first = env.reset(key, task)
        theirs = env.brax.reset(key)

        def step(carry, action):
            (mine, theirs), before = carry, carry[1].pipeline_state
            mine, timestep = env.step(key, mine, action, task)
            theirs = env.brax.step(theirs, action)
            states = [s.pipeline_state for s in (mine.brax, theirs)]
            return (mine, theirs), (timestep, [(s.q, s.qd) for s in states], theirs, before.x.pos[0])

        return first, jax.lax.scan(step, (mine, theirs), actions)[1]

    actions = jax.random.uniform(jax.random.key(1), (steps, 6), minval=-1.0)
    first, (timestep, (mine, theirs), state, before) = both(jax.random.key(0), actions)
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
    np.testing.assert_array_equal(timestep.observation, state.obs)
    assert np.abs(np.diff(np.asarray(mine[0]), axis=0)).max() > 1e-3  # it moves
    assert first.observation.shape == (17,) and timestep.truncated.tolist() == [False] * (steps - 1) + [True]
    assert not timestep.terminated.any()
    speed = (state.pipeline_state.x.pos[:, 0, 0] - before[:, 0]) / env.brax.dt
    np.testing.assert_allclose(state.metrics["x_velocity"], speed, atol=1e-4)
    expected = -np.abs(speed - 1.5) - 0.05 * np.square(actions).sum(-1)
    np.testing.assert_allclose(timestep.reward, expected, atol=1e-4)


@needs_brax
@pytest.mark.parametrize("name", NAMES)
def test_every_task_says_what_is_earned(name):
    from relic_jax.envs.brax.env import Locomotion

    assert type(registry.make(name)).earned is not Locomotion.earned
