"""Running mean and variance of vector observations, by which they are normalised.

They are kept among the parameters (`encoder/statistics`), so they are saved, loaded and replicated with them, and stand
still where nothing is trained. No gradient reaches them; the optimiser leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from relic_jax.types import PyTree

LIMIT = 10.0  # of a normalised component: what was constant in training and is not any more
Statistics = dict[str, jax.Array]
"""mean, variance: float32 [D]. count: float32 [], how many observations they are of."""


def nothing_seen(size: int) -> Statistics:
    """Mean 0 and variance 1 of no observations: leaves what it normalises as it is."""
    return {"mean": jnp.zeros(size), "variance": jnp.ones(size), "count": jnp.zeros(())}


def normalized(statistics: Statistics, x: jax.Array) -> jax.Array:
    """(x − mean) / deviation, within ±`LIMIT`. x: float32 [..., D]. No gradient goes into the statistics."""
    mean, variance = (jax.lax.stop_gradient(statistics[name]) for name in ("mean", "variance"))
    return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-8), -LIMIT, LIMIT)


def merged(
    statistics: Statistics,
    x: jax.Array,
    weight: jax.Array,
    total: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> Statistics:
    """The statistics with more observations taken in (Chan et al. 1979, the parallel form of Welford's update).

    x: float32 [..., D]. weight: float32 [...], 0 for what does not count, else 1. total: sums over devices.
    """
    axes = tuple(range(weight.ndim))
    weight = weight[..., None]
    count = total(weight.sum())
    mean = total((weight * x).sum(axes)) / jnp.maximum(count, 1)
    squares = total((weight * jnp.square(x - mean)).sum(axes))
    before, mean_before = statistics["count"], statistics["mean"]
    after, delta = jnp.maximum(before + count, 1), mean - mean_before
    spread = before * statistics["variance"] + squares + jnp.square(delta) * (before * count / after)
    known = before + count > 0
    return {
        "mean": mean_before + delta * (count / after),
        "variance": jnp.where(known, spread / after, statistics["variance"]),
        "count": before + count,
    }
