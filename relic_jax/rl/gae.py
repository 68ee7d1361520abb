"""Generalised advantage estimation over a trial (Schulman et al. 2016, arXiv 1506.02438)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def advantages(
    reward: jax.Array,
    value: jax.Array,
    last_value: jax.Array,
    ended: jax.Array,
    final_value: jax.Array,
    length: jax.Array,
    *,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """One environment's advantages over the first `length` of T steps.

        δ_t = r_t + γ·V_{t+1} − V_t,      A_t = δ_t + γλ·A_{t+1}

    At a step that `ended` the recursion is cut and V_{t+1} is `final_value` (0 for an end that counts as terminal). At
    the last step, t = length−1, V_{t+1} is `last_value`, the value of the observation the trial goes on from.

    reward, value, final_value: float32 [T]; ended: bool [T]; last_value: float32 []; length: int32 [].
    Returns float32 [T], 0 from `length` on.
    """
    step = jnp.arange(reward.shape[0])
    is_last = step == length - 1
    next_value = jnp.where(is_last, last_value, jnp.roll(value, -1))
    next_value = jnp.where(ended, final_value, next_value)
    delta = jnp.where(step < length, reward + gamma * next_value - value, 0.0)
    decay = jnp.where(ended | (step >= length), 0.0, gamma * gae_lambda)

    def joined(later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (later_sum, later_decay), (earlier_sum, earlier_decay) = later, earlier
        return earlier_sum + earlier_decay * later_sum, earlier_decay * later_decay

    # log T passes over all steps: a loop over T steps takes longer than everything else of an update on a GPU
    return jax.lax.associative_scan(joined, (delta, decay), reverse=True)[0]
