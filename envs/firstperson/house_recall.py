"""Squares of 1 m in the frame that all episodes of a trial share, and labels for `ppo.recall_coef` in them.

The label of a step is the square in which the agent was when an object of the category asked for was last in reach.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

SQUARE = 1.0  # meters


def counts(low: np.ndarray, high: np.ndarray) -> tuple[int, ...]:
    """Return the number of squares along each axis of the observed positions. low, high: [2] in meters."""
    return tuple(math.ceil(round(float(extent) / SQUARE, 3)) for extent in high - low)


def square(position: jax.Array, low: np.ndarray, number: tuple[int, ...]) -> jax.Array:
    """Return the square of observed positions [..., 2], one-hot along each axis, float32 [..., sum(number)]."""
    index = jnp.clip(jnp.floor((position - low) / SQUARE).astype(jnp.int32), 0, jnp.array(number) - 1)
    return jnp.concatenate([jax.nn.one_hot(index[..., axis], n) for axis, n in enumerate(number)], -1)


def last_in_reach(observations: dict[str, jax.Array], number: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the square in which the category asked for was last in reach, at this step or before.

    Args:
        observations: Those of a trial with the view "symbols" in a frame that all its episodes share, leading axis T.
        number: Numbers of squares along each axis.

    Returns:
        (indices, int32 [T, 2]; bool [T], whether the category was in reach).
    """
    target = observations["target"].argmax(-1)
    steps = jnp.arange(target.shape[0])
    latest = jax.lax.cummax(jnp.where(observations["in_reach"] > 0, steps[:, None], -1))
    last = jnp.take_along_axis(latest, target[:, None], 1)[:, 0]
    along = jnp.split(observations["square"][jnp.maximum(last, 0)], np.cumsum(number)[:-1], axis=-1)
    return jnp.stack([axis.argmax(-1) for axis in along], -1).astype(jnp.int32), last >= 0
