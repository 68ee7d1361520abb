"""An episode ends once: where an environment sets both end flags it terminated, and nothing is bootstrapped from it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic_jax.bridge.protocol import ArraySpec, Spec
from relic_jax.bridge.worker import Slot
from relic_jax.environment.base import Discrete, Environment, TimeStep, VisualEnvironment, num_tasks
from relic_jax.environment.repeat import repeated
from relic_jax.envs import registry
from relic_jax.rl import update
from relic_jax.rl.rollout import collect
from relic_jax.rl.state import init_state, make_setup

JITTED = [name for name in registry.names() if registry.TABLE[name].source.endswith(":PRESETS")]


STEPS = 12
HORIZON = STEPS + 1  # of environments that end by their flags alone: what reaches the horizon is truncated there
NOTHING, TERMINATED, TRUNCATED, BOTH = range(4)


@dataclasses.dataclass(frozen=True)
class Looking(VisualEnvironment):
    """Every step's end flags are in the task: int32 [STEPS]. One action, so that all trials act alike."""

    name: str = "flags"
    horizon: int = HORIZON
    action_space = Discrete(1)
    observation_spec = jax.ShapeDtypeStruct((2,), jnp.float32)

    def tasks(self, split):
        return np.zeros((2, STEPS), np.int32)

    def start(self, key, task):
        return jnp.zeros((), jnp.int32)

    def restart(self, key, state, task):
        return state  # the flags go on where they were

    def transition(self, key, state, action, task):
        code = task[state % STEPS]
        flags = (code == TERMINATED) | (code == BOTH), (code == TRUNCATED) | (code == BOTH)
        return state + 1, TimeStep(None, jnp.cos(state.astype(jnp.float32)), *flags)

    def observe(self, state, task):
        return state, jnp.stack([jnp.sin(state * 1.0), state / STEPS])


@dataclasses.dataclass(frozen=True)
class Plain(Environment):
    """The same without looking apart. Its episodes all begin at the task's first flag."""

    inner: Looking = Looking()
    name: str = "flags"
    horizon: int = HORIZON
    action_space = Discrete(1)
    observation_spec = Looking.observation_spec

    def tasks(self, split):
        return self.inner.tasks(split)

    def reset(self, key, task):
        return self.inner.reset(key, task)

    def step(self, key, state, action, task):
        return self.inner.step(key, state, action, task)


ENVIRONMENTS = {"plain": Plain(), "visual": Looking(), "repeated": repeated(Looking(), 2)}


@pytest.fixture(scope="module")
def targets(tiny):
    """targets(name)(codes): (TrialStep, value targets [2, STEPS]) of trials with both flags, and with termination."""
    base = tiny(env="flags")
    trial = dataclasses.replace(base.trial, environments=2, steps=STEPS, updates=1)
    config = dataclasses.replace(base, trial=trial, ppo=dataclasses.replace(base.ppo, time_limit="bootstrap"))

    @functools.cache
    def of(name):
        setup = make_setup(config, ENVIRONMENTS[name])

        @jax.jit
        def run(codes):
            tasks = jnp.stack([codes, jnp.where(codes == BOTH, TERMINATED, codes)])
            state = init_state(setup)
            state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
            trial = setup.trials.reset(jax.random.key(0), tasks)
            found = collect(setup, state.params, trial, state.memory, jax.random.key(1))
            batch = update.make_batch(setup, state.replace(trajectory=found.steps), state.memory, found.last_value)
            return found.results, batch.target, found.steps.final_value

        return run

    return of


@pytest.mark.parametrize("name", ENVIRONMENTS)
@settings(deadline=None, max_examples=30)
@given(codes=st.lists(st.integers(0, 3), min_size=STEPS, max_size=STEPS))
def test_termination_wins(targets, name, codes):
    results, target, final_value = jax.device_get(targets(name)(np.array(codes, np.int32)))
    assert not (results.terminated & results.truncated).any()
    np.testing.assert_array_equal(results.terminated[:, 0], results.terminated[:, 1])
    np.testing.assert_array_equal(results.truncated[:, 0], results.truncated[:, 1])
    if name == "visual":
        np.testing.assert_array_equal(results.terminated[:, 0], np.isin(codes, (TERMINATED, BOTH)))
        np.testing.assert_array_equal(results.truncated[:, 0], np.equal(codes, TRUNCATED))
    np.testing.assert_array_equal(target[0], target[1])
    assert not final_value[results.terminated.T].any()


def test_a_stored_step_with_both_flags_is_not_bootstrapped(tiny):
    """As in a checkpoint that was written in the middle of a trial, before termination won."""
    setup = make_setup(tiny(env="flags"), Plain())
    state = jax.jit(lambda: init_state(setup))()
    flags = jnp.ones_like(state.trajectory.terminated)
    steps = state.trajectory.replace(terminated=flags, truncated=flags, final_value=flags * 7.0)
    batch = update.make_batch(setup, state.replace(trajectory=steps), state.memory, jnp.zeros(4))
    assert not np.asarray(batch.target).any()


def dynamics(env):
    """(start, step) without anything that is only looked at."""
    if isinstance(env, VisualEnvironment):
        return env.start, env.transition
    return lambda key, task: env.reset(key, task)[0], env.step


@pytest.mark.parametrize("name", [*JITTED, "repeated darkroom-hard-17"])
def test_no_environment_sets_both(name):
    """Its horizon is shortened where it can be, so that ends and time limits meet; random actions in random tasks."""
    times, _, name = name.rpartition(" ")
    env: Any = registry.make(name)
    short = {"horizon": 4}
    if name.startswith("darkroom"):
        short |= {"width": 3, "height": 3}
    for field, value in short.items():
        if field in {f.name for f in dataclasses.fields(env)}:
            env = dataclasses.replace(env, **{field: value})
    env = repeated(env, 3 if times else 1)
    tasks = env.tasks("train")
    chosen = np.arange(128) % num_tasks(tasks)
    tasks = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[chosen]), tasks)
    start, step = dynamics(env)

    @jax.jit
    @jax.vmap
    def play(key, task):
        def one(state, key):
            state, timestep = step(key, state, env.action_space.sample(key), task)
            return state, (timestep.terminated, timestep.truncated)

        return jax.lax.scan(one, start(key, task), jax.random.split(key, min(env.horizon, 40)))[1]

    terminated, truncated = play(jax.random.split(jax.random.key(0), len(chosen)), tasks)
    assert not (terminated & truncated).any()
    assert (terminated | truncated).any() or env.horizon > 40


class Flags:
    """A simulator of a worker whose end flags are those of `codes`, one after the other."""

    spec = Spec(
        name="flags",
        observation={"vector": ArraySpec("float32", (1,))},
        action=ArraySpec("int32", ()),
        actions=2,
        low=0.0,
        high=0.0,
        metrics=(),
        horizon=HORIZON,
        restorable=True,
        expert=False,
    )

    def __init__(self, codes):
        self._codes = iter(codes)

    def reset(self, task, seed):
        return {"vector": np.zeros(1, np.float32)}

    def step(self, action):
        code = next(self._codes)
        flags = code in (TERMINATED, BOTH), code in (TRUNCATED, BOTH)
        return {"vector": np.ones(1, np.float32)}, 1.0, *flags, {}


@given(codes=st.lists(st.integers(0, 3), min_size=1, max_size=STEPS), kind=st.sampled_from([bool, np.bool_, int]))
def test_a_worker_never_answers_with_both(codes, kind):
    class Typed(Flags):
        def step(self, action):
            observation, reward, terminated, truncated, metrics = super().step(action)
            return observation, reward, kind(terminated), kind(truncated), metrics

    slot = Slot(Typed(codes), 0)
    flags = {name: np.zeros(1, bool) for name in ("terminated", "truncated")}
    buffer = flags | {"action": np.zeros(1, np.int32), "acted": np.zeros(1, np.int32), "reward": np.zeros(1)}
    buffer |= {"metrics": np.zeros((1, 0)), "observation/vector": np.zeros((1, 1)), "final/vector": np.zeros((1, 1))}
    slot.reset(buffer, None, 0, 0, [])
    for code in codes:
        slot.step(buffer)
        assert buffer["terminated"][0] == (code in (TERMINATED, BOTH))
        assert buffer["truncated"][0] == (code == TRUNCATED)


def test_gymnasium_environments_terminate_at_their_limit():
    gymnasium = pytest.importorskip("gymnasium")
    from relic_jax.bridge import gym

    class Both(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.ones(1, np.float32), 1.0, True, True, {}

    gymnasium.register("relic-both-v0", entry_point=Both, max_episode_steps=1)
    env = gym.GymEnvironment("relic-both-v0")
    env.reset(None, 0)
    assert env.step(0)[2:4] == (True, False)
    env.close()
