"""The interface of environments: its documented example, its exports, and subclasses that leave members undefined."""

import dataclasses
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relic_jax import environment
from relic_jax.environment import Discrete, Environment, TimeStep, Trials, base, first_timestep
from relic_jax.envs import custom


def documented():
    """The environment in the module's docstring."""
    code = base.__doc__[base.__doc__.index("    @dataclasses") :]
    names = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "np": np, "Environment": Environment}
    names |= {"Discrete": Discrete, "TimeStep": TimeStep, "first_timestep": first_timestep, "__name__": __name__}
    exec(textwrap.dedent(code), names)
    return names["Guess"]()


def test_the_documented_example_is_an_environment():
    env = documented()
    custom.check(env, "env is 'guess'")
    trials = Trials(env)
    state = trials.reset(jax.random.key(0), jnp.asarray(env.tasks("train")))
    state, step = trials.step(jax.random.key(1), state, jnp.array([0, 0, 2], jnp.int32))
    assert step.reward.tolist() == [1, 0, 1] and state.observation.ravel().tolist() == [1, 0, 1]


def test_every_exported_name_exists():
    assert all(getattr(environment, name) is not None for name in environment.__all__)
    assert set(environment.__all__) <= set(dir(environment))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = environment.Nothing


@pytest.mark.parametrize("member", ["observation_spec", "action_space", "reset", "step", "tasks"])
def test_undefined_members_raise(member):
    arguments = {"reset": (0, 0), "step": (0, 0, 0, 0), "tasks": ("train",)}.get(member)
    with pytest.raises(NotImplementedError):
        value = getattr(Environment(), member)
        value(*arguments)


def test_defaults_of_the_interface():
    env = documented()
    assert not (env.expensive_reset or env.masks_actions or env.ends_in_time or env.on_host)
    assert env.observation_range is env.action_names is env.observation_names is None and not env.has_expert
    assert env.check_start(4) is None and env.concurrent_trials(7) == 7 and env.reference_episodes == 8192
