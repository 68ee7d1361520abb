"""Means over the valid steps of all devices: the sum of all sums divided by the sum of all counts.

The result is 0 if there is no valid step. Callers average over D devices at the end (`Setup.mean`), so each device
divides its sum s_d by the mean count of the devices:

    (1/D) Σ_d s_d / ((1/D) Σ_d n_d) = Σ_d s_d / Σ_d n_d

A device that lost more steps than another then has less weight.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from relic_jax.rl.minibatches import Order
from relic_jax.rl.state import Setup


class Counts(NamedTuple):
    """Divisors of sums over the valid steps of a group of environments, float32 [] or [groups].

    Attributes:
        loss: divisor for the loss and its gradient. float32 [b] or [groups, b] if the environments of a group belong
          to different minibatches.
        metrics: divisor for the metrics.
    """

    loss: jax.Array
    metrics: jax.Array


def mean_count(setup: Setup, valid: jax.Array) -> jax.Array:
    """Return the number of valid steps averaged over devices, or 1 if there is none. valid: bool [...]."""
    return nonzero(setup.mean(_count(valid)))


def nonzero(count: jax.Array) -> jax.Array:
    """Replace a count of 0 by 1. Counts are means over devices, so they can lie between 0 and 1."""
    return jnp.where(count > 0, count, 1.0)


def _count(valid: jax.Array) -> jax.Array:
    return valid.sum(dtype=jnp.int32).astype(jnp.float32)  # a float32 sum of ones would stop at 2^24


def mean_of_valid(x: jax.Array, valid: jax.Array | None, count: jax.Array | None = None) -> jax.Array:
    """Return the sum over the valid steps divided by their number.

    Args:
        x: float32 [...].
        valid: bool [...], or None for the mean over all steps.
        count: the divisor, float32 [], or float32 [b] for each row of x. None counts the valid steps.

    Returns:
        float32 [].
    """
    if valid is None:
        return x.mean()
    if count is not None and count.ndim:
        return jnp.sum(x / count[:, None], where=valid)
    return jnp.sum(x, where=valid) / (nonzero(_count(valid)) if count is None else count)


def normalize_advantages(
    setup: Setup, advantage: jax.Array, length: jax.Array | int, valid: jax.Array | None = None
) -> jax.Array:
    """Normalize advantages to mean 0 and standard deviation 1 over the trial so far and all environments.

    The window of the update would be too short: late in a trial, the policy can already solve the task, and normalizing
    would amplify the remaining noise.

    Args:
        setup: the training setup.
        advantage: float32 [B, T].
        length: int32 [], number of steps of the trial so far.
        valid: bool [B, T], the steps to include; the results of the other steps are 0. None includes all.

    Returns:
        float32 [B, T].
    """
    filled = jnp.broadcast_to(jnp.arange(advantage.shape[1]) < length, advantage.shape)
    filled = filled if valid is None else filled & valid
    count = mean_count(setup, filled)
    mean = setup.mean(mean_of_valid(advantage, filled, count))
    deviation = jnp.sqrt(setup.mean(mean_of_valid(jnp.square(advantage - mean), filled, count)))
    result = (advantage - mean) / (deviation + 1e-8)
    return result if valid is None else jnp.where(filled, result, 0.0)


def step_counts(setup: Setup, valid: jax.Array | None, order: Order, *, shared: bool) -> Counts | None:
    """Return the counts of the groups of one optimizer step, or None if all steps are valid.

    With `gradient_reduction` "sum", each minibatch has a mean loss over its own valid steps, and the gradients are
    summed. With "mean", there is one mean over the valid steps of all minibatches, so they share a count. Metrics are
    means over all valid steps of the epoch.

    Args:
        setup: the training setup.
        valid: bool [B, K], the valid steps of the window.
        order: the environments of the step, arrays [groups, b].
        shared: whether the devices share each minibatch (`minibatches.devices_share_minibatches`).

    Returns:
        Counts float32 [groups], or [groups, b] for the loss.
    """
    if valid is None:
        return None
    rows = valid.sum(1, dtype=jnp.int32)[order.rows]
    each = rows.sum(1).astype(jnp.float32)
    if setup.config.ppo.gradient_reduction == "mean":
        loss = jnp.full_like(each, setup.mean(each.mean()))
    elif order.minibatch is None:
        loss = setup.mean(each) if shared else each
    else:
        minibatches = jnp.zeros(setup.config.ppo.accumulate, jnp.int32).at[order.minibatch].add(rows)
        totals = (setup.mean if shared else setup.total)(minibatches.astype(jnp.float32))
        loss = totals[order.minibatch]
    per_group = setup.mean(_count(valid)) / (valid.shape[0] // order.rows.shape[1])
    return Counts(nonzero(loss), jnp.full_like(each, nonzero(per_group)))
