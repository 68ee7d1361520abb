"""Squares of 1 m in the frame that all episodes of a trial share, and labels for `ppo.recall_coef` in them.

The label of a step is the square in which the agent was when an object of the target category was last in reach.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

SQUARE = 1.0  # meters


def num_squares(extent: float) -> int:
    """Return the number of squares along an axis on which positions are −extent … extent meters."""
    return math.ceil(round(2 * extent / SQUARE, 3))


def square(position: jax.Array, extent: float) -> jax.Array:
    """Return the square of a position.

    Args:
        position: Float32 [2]; each coordinate −extent … extent meters.
        extent: The largest coordinate.

    Returns:
        Float32 [2·N], N = `num_squares(extent)`; one-hot along the first axis, then along the second.
    """
    count = num_squares(extent)
    index = jnp.clip(jnp.floor((position + extent) / SQUARE).astype(jnp.int32), 0, count - 1)
    return jax.nn.one_hot(index, count, dtype=jnp.float32).reshape(-1)


def last_in_reach(observations: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return the square in which the target category was last in reach, at this step or before.

    Args:
        observations: Those of a trial with the view "symbols" in a frame that all its episodes share, leading axis T.

    Returns:
        (indices, int32 [T, 2]; bool [T], whether the category was in reach).
    """
    target = observations["target"].argmax(-1)
    steps = jnp.arange(target.shape[0])
    latest = jax.lax.cummax(jnp.where(observations["in_reach"] > 0, steps[:, None], -1))
    last = jnp.take_along_axis(latest, target[:, None], 1)[:, 0]
    square = observations["square"][jnp.maximum(last, 0)]
    return square.reshape(*square.shape[:-1], 2, -1).argmax(-1).astype(jnp.int32), last >= 0
