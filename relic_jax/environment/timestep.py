"""The result of one step of an environment, and the end of an episode at the horizon."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

PyTree = Any


@struct.dataclass
class TimeStep:
    """The result of `reset` and `step`. All fields are unbatched.

    Attributes:
        observation: Pytree of arrays that matches `Environment.observation_spec`.
        reward: float32 []. 0 on reset.
        terminated: bool []. The episode reached an end state of the task.
        truncated: bool []. A time limit cut the episode; the state has a future value. If an environment sets both
            flags, the episode terminated (`one_end`).
        legal: bool [action_space.mask_size]. The actions that can be taken next, if `Environment.masks_actions`, else
            None. Ignored at the end of an episode.
    """

    observation: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    legal: jax.Array | None = None


def first_timestep(observation: PyTree, legal: jax.Array | None = None) -> TimeStep:
    """Return the `TimeStep` of a reset: reward 0, not ended."""
    false = jnp.zeros((), bool)
    return TimeStep(observation, jnp.zeros((), jnp.float32), false, false, legal)


def one_end(timestep: TimeStep) -> TimeStep:
    """Clear `truncated` if the episode terminated: a terminal state has no future value."""
    return dataclasses.replace(timestep, truncated=timestep.truncated & ~timestep.terminated)


def cut_at(timestep: TimeStep, last: jax.Array) -> tuple[TimeStep, jax.Array]:
    """Truncate an episode that did not end by itself.

    Args:
        timestep: The result of a step, with any leading axes.
        last: bool, with the same axes. Whether the step is the last that the horizon allows.

    Returns:
        The `TimeStep` and whether the horizon cut the episode, bool.
    """
    cut = last & ~(timestep.terminated | timestep.truncated)
    return dataclasses.replace(timestep, truncated=timestep.truncated | cut), cut
