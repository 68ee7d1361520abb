"""Shares of right answers by how long ago the answer was seen and by how much was seen since."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from relic_jax.envs.gridobj.env import GridObj

AGES = (0, 1, 10, 50, 300)
"""Lower bounds of the groups of steps by age."""


@struct.dataclass
class Sightings:
    """Sightings of the kind that the episode asks for, at every step of trials. Leading axes [B, T].

    Attributes:
        age: int32 [B, T]; steps since an object of this kind was last in view, −1 if it was not yet in this trial.
        between: int32 [B, T]; number of other kinds in view since then.
    """

    age: jax.Array
    between: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def sightings(env: GridObj, observations: dict[str, jax.Array]) -> Sightings:
    """Return the sightings in recorded observations, whose arrays have leading axes [B, T]."""
    target = observations["target"].argmax(-1)
    number = jnp.arange(target.shape[1])
    seen = observations["view"].reshape(*target.shape, env.kinds, -1).any(-1)
    last = jax.lax.cummax(jnp.where(seen, number[:, None], -1), axis=1)
    asked = jnp.take_along_axis(last, target[..., None], -1)
    age = jnp.where(asked[..., 0] >= 0, number - asked[..., 0], -1)
    return Sightings(age, (last > asked).sum(-1))


def shares(right: np.ndarray, seen: Sightings) -> dict[str, float]:
    """Return the share of right answers by age and by the number of other kinds seen since.

    Args:
        right: bool [B, T]; whether the answers are right.
        seen: The sightings at the same steps.
    """
    age, between = np.asarray(seen.age), np.asarray(seen.between)
    groups: dict[str, Any] = {"all": age >= 0}
    for low, high in zip(AGES, (*AGES[1:], None), strict=True):
        name = f"age {low}+" if high is None else f"age {low}–{high - 1}"
        groups[name] = (age >= low) if high is None else (age >= low) & (age < high)
    for count in range(4):
        match = between == count if count < 3 else between >= count
        groups[f"between {count}" + ("+" if count == 3 else "")] = (age > 0) & match
    return {name: float(right[group].mean()) for name, group in groups.items() if group.any()}
