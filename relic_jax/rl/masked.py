"""Means over valid steps of all devices: a sum of sums divided by a sum of counts, 0 where there is no valid step.

A device that lost more steps than another weighs less. Callers average over devices at the end (`Setup.mean`), so each
device divides its own sum by the mean count of the devices: mean_d(sum_d / mean_d(count_d)) = Σ sum_d / Σ count_d.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from relic_jax.rl.state import Setup


class Counts(NamedTuple):
    """What sums over a minibatch's valid steps are divided by, float32 [] or [minibatches]. loss: for its gradient.
    metrics: for what is reported.
    """

    loss: jax.Array
    metrics: jax.Array


def count_of(setup: Setup, valid: jax.Array) -> jax.Array:
    """Number of valid steps, the mean over devices; 1 where there is none. valid: bool [...]. Returns float32 []."""
    return at_least_some(setup.mean(_number(valid)))


def at_least_some(count: jax.Array) -> jax.Array:
    """A count that can be divided by. It may be less than 1: it is a mean over devices."""
    return jnp.where(count > 0, count, 1.0)


def _number(valid: jax.Array) -> jax.Array:
    return valid.sum(dtype=jnp.int32).astype(jnp.float32)  # in float32 a sum of ones would stop at 2^24


def mean_of_valid(x: jax.Array, valid: jax.Array | None, count: jax.Array | None = None) -> jax.Array:
    """Sum over the valid steps divided by `count` (None: their number here). valid None: the plain mean.

    x: float32 [...]; valid: bool [...]; count: float32 [].
    """
    if valid is None:
        return x.mean()
    return jnp.sum(x, where=valid) / (at_least_some(_number(valid)) if count is None else count)


def normalized(
    setup: Setup, advantage: jax.Array, length: jax.Array | int, valid: jax.Array | None = None
) -> jax.Array:
    """Advantages float32 [B, T] with mean 0 and deviation 1 over the first `length` steps of all environments.

    valid: bool [B, T], which of them count; the others are 0. None: all.

    Over the trial so far and not over the window: in a late segment everybody may know what to do, and what is left
    there is noise that must not be blown up to the size of a discovery.
    """
    filled = jnp.broadcast_to(jnp.arange(advantage.shape[1]) < length, advantage.shape)
    filled = filled if valid is None else filled & valid
    count = count_of(setup, filled)
    mean = setup.mean(mean_of_valid(advantage, filled, count))
    deviation = jnp.sqrt(setup.mean(mean_of_valid(jnp.square(advantage - mean), filled, count)))
    result = (advantage - mean) / (deviation + 1e-8)
    return result if valid is None else jnp.where(filled, result, 0.0)


def step_counts(setup: Setup, valid: jax.Array | None, order: jax.Array, *, shared: bool) -> Counts | None:
    """Counts of the minibatches of one optimiser step, [accumulate]; None where all steps are valid.

    valid: bool [B, K], of the loss window of all environments. order: int32 [accumulate, b], this device's rows of each
    minibatch. shared: whether the devices share each minibatch, not the minibatches of the step.

    With `gradient_reduction` "sum", gradients of means are summed: each minibatch has its own count, over all of its
    rows. With "mean" they make one mean over the valid steps of all minibatches of the step: one count. Metrics are
    means over all valid steps of the epoch.
    """
    if valid is None:
        return None
    each = valid.sum(1, dtype=jnp.int32)[order].sum(1).astype(jnp.float32)
    if shared:
        each = setup.mean(each)
    if setup.config.ppo.gradient_reduction == "mean":
        each = jnp.full_like(each, setup.mean(each.mean()))
    minibatches = valid.shape[0] // order.shape[1]
    reported = setup.mean(_number(valid)) / minibatches
    return Counts(at_least_some(each), jnp.full_like(each, at_least_some(reported)))
