"""Labels for `ppo.recall_coef` in the houses: where the category asked for was last seen in the trial."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.house_plan import CELL

BIN = 1.0  # meters
SHIFT = CELL / 2  # meters; keeps the centers of objects, which are corners of cells, away from the ends of bins


def bins(low: np.ndarray, high: np.ndarray) -> tuple[int, ...]:
    """Return the number of bins along each axis of the observed positions. low, high: [2] in meters."""
    return tuple(math.ceil(round(float(extent) / BIN, 3)) for extent in high - low)


def last_seen(
    observations: dict[str, jax.Array], low: np.ndarray, counts: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Return the place where the category asked for was last in view, at this step or before.

    Args:
        observations: Those of a trial with the view "symbols" in a frame that all its episodes share, leading axis T.
        low: Float32 [2]; the lowest observed position.
        counts: Numbers of bins along each axis.

    Returns:
        (bins, int32 [T, 2]; bool [T], whether the category was seen).
    """
    target = observations["target"].argmax(-1)
    steps = jnp.arange(target.shape[0])
    latest = jax.lax.cummax(jnp.where(observations["in_view"] > 0, steps[:, None], -1))
    last = jnp.take_along_axis(latest, target[:, None], 1)[:, 0]
    at = jnp.maximum(last, 0)
    cos, sin = observations["heading"][at].T
    angle = jnp.arctan2(sin, cos) + observations["bearing"][at, target]
    ahead = jnp.stack([jnp.cos(angle), -jnp.sin(angle)], -1) * observations["distance"][at, target][:, None]
    place = (observations["gps"][at] + ahead - low + SHIFT) / BIN
    return jnp.clip(jnp.floor(place).astype(jnp.int32), 0, jnp.array(counts) - 1), last >= 0
