"""Running mean and variance of vector observations, used to normalize them.

The statistics are part of the parameters (`encoder/statistics`), so they are saved, loaded and replicated with them.
They have no gradient, the optimizer does not change them, and they are constant during evaluation.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from relic_jax.types import PyTree

LIMIT = 10.0
"""Bound of a normalized component. It is reached by components that were almost constant in training."""
Statistics = dict[str, jax.Array]
"""`mean` and `variance`: float32 [D]. `count`: float32 [], number of observations, or their weight in long runs."""
RECENT = 2**20
"""Number of merges after which the weight of earlier observations stops growing. After 2^24 merges, rounding in float32
would drop the number of new observations, but not always their squares, so the variance would grow without bound."""


def initial_statistics(size: int) -> Statistics:
    """Return statistics of no observations, with mean 0 and variance 1. size: number of components D."""
    return {"mean": jnp.zeros(size), "variance": jnp.ones(size), "count": jnp.zeros(())}


def normalize(statistics: Statistics, x: jax.Array) -> jax.Array:
    """Compute (x − mean) / √variance, clipped to ±`LIMIT`. x: float32 [..., D]. The statistics get no gradient."""
    mean, variance = (jax.lax.stop_gradient(statistics[name]) for name in ("mean", "variance"))
    return jnp.clip((x - mean) * jax.lax.rsqrt(variance + 1e-8), -LIMIT, LIMIT)


def merge(
    statistics: Statistics,
    x: jax.Array,
    weight: jax.Array,
    total: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> Statistics:
    """Add observations to the statistics (Chan et al. 1979, the parallel form of Welford's algorithm).

    With n observations of mean m and variance v, and n' new ones of mean m' and sum of squared deviations S':

        N = n + n',    δ = m' − m,    mean = m + δ·n'/N,    variance = (n·v + S' + δ²·n·n'/N) / N

    Args:
        statistics: the statistics so far.
        x: new observations, float32 [..., D].
        weight: float32 [...], 1 for observations to include and 0 for others.
        total: sums a pytree over devices.

    Returns:
        The statistics of all observations.
    """
    axes = tuple(range(weight.ndim))
    portion = total(jnp.asarray(float(max(weight.size, 1))))  # observations of all devices
    weight = weight[..., None]
    count = total(weight.sum())
    mean = total((weight * x).sum(axes)) / jnp.maximum(count, 1)
    squares = total((weight * jnp.square(x - mean)).sum(axes))
    before = jnp.minimum(statistics["count"], RECENT * portion)
    mean_before = statistics["mean"]
    after, delta = jnp.maximum(before + count, 1), mean - mean_before
    spread = before * statistics["variance"] + squares + jnp.square(delta) * (before * count / after)
    known = before + count > 0
    return {
        "mean": mean_before + delta * (count / after),
        "variance": jnp.where(known, spread / after, statistics["variance"]),
        "count": before + count,
    }
