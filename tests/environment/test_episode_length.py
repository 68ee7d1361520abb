"""Which environments have episodes of one length only."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from relic_jax.environment.episode_length import has_fixed_length
from relic_jax.environment.repeat import repeated
from relic_jax.envs.probes.env import BanditProbe
from relic_jax.envs.registry import make


class Changed(BanditProbe):
    """A bandit whose episodes end after the steps that the attribute `length` names."""

    length = "action"

    def reset(self, key, task):
        first = {"task": task, "key": jax.random.randint(key, (), 1, 4)}.get(self.length, jnp.zeros((), jnp.int32))
        return (super().reset(key, task)[0], first, jnp.zeros((), jnp.int32)), super().reset(key, task)[1]

    def step(self, key, state, action, task):
        inner, left, seen = state
        inner, timestep = super().step(key, inner, action, task)
        left = left - 1 if self.length != "action" else seen  # the action ends the episode one step later
        over = left == (1 if self.length == "action" else 0)
        return (inner, left, action), dataclasses.replace(timestep, terminated=over)


@pytest.mark.parametrize(("name", "expected"), [("probe-bandit", True), ("probe-memory", True), ("gridobj-9", False)])
def test_environments_and_their_repeats(name, expected):
    assert has_fixed_length(make(name)) == has_fixed_length(repeated(make(name), 2)) == expected


@pytest.mark.parametrize(("length", "expected"), [("action", False), ("task", False), ("key", False), ("none", True)])
def test_the_end_can_depend_on_more_than_the_number_of_steps(monkeypatch, length, expected):
    monkeypatch.setattr(Changed, "length", length)
    assert has_fixed_length(Changed()) == expected
