"""A small environment with continuous actions."""

import dataclasses

import jax
import jax.numpy as jnp

from relic_jax.environment.base import Box, Environment, TimeStep, first_timestep


@dataclasses.dataclass(frozen=True)
class Add(Environment):
    """The state is the sum of actions so far; ends where it exceeds the task or after `horizon` steps."""

    name: str = "add"
    horizon: int = 5

    @property
    def observation_spec(self):
        return jax.ShapeDtypeStruct((2,), jnp.float32)

    @property
    def action_space(self):
        return Box((0.0, -1.0), (4.0, 1.0))

    def reset(self, key, task):
        return (jnp.zeros(2), jnp.int32(0)), first_timestep(jnp.zeros(2))

    def step(self, key, state, action, task):
        total, step = state[0] + action, state[1] + 1
        terminated = total[0] > task
        truncated = (step >= self.horizon) & ~terminated
        return (total, step), TimeStep(total, action[0], terminated, truncated)
