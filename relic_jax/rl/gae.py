"""Generalized advantage estimation over a trial (Schulman et al. 2016, arXiv 1506.02438)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def advantages(
    reward: jax.Array,
    value: jax.Array,
    last_value: jax.Array,
    ended: jax.Array,
    final_value: jax.Array,
    length: jax.Array | int,
    *,
    gamma: float,
    gae_lambda: float,
) -> jax.Array:
    """Compute the advantages of the first `length` of T steps of one environment.

        δ_t = r_t + γ·V_{t+1} − V_t,      A_t = δ_t + γλ·A_{t+1}

    At a step at which an episode `ended`, the sum over later steps stops and V_{t+1} is `final_value`. At the last
    step, t = length − 1, V_{t+1} is `last_value`.

    Args:
        reward: float32 [T].
        value: V_t, float32 [T].
        last_value: value of the observation after the last step, float32 [].
        ended: bool [T].
        final_value: float32 [T], the value after the end of an episode: 0 if it terminated.
        length: int32 [].
        gamma: discount γ.
        gae_lambda: λ.

    Returns:
        float32 [T], 0 from `length` on.
    """
    step = jnp.arange(reward.shape[0])
    is_last = step == length - 1
    next_value = jnp.where(is_last, last_value, jnp.roll(value, -1))
    next_value = jnp.where(ended, final_value, next_value)
    delta = jnp.where(step < length, reward + gamma * next_value - value, 0.0)
    decay = jnp.where(ended | (step >= length), 0.0, gamma * gae_lambda)

    def combine(
        later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (later_sum, later_decay), (earlier_sum, earlier_decay) = later, earlier
        return earlier_sum + earlier_decay * later_sum, earlier_decay * later_decay

    # log T passes over all steps. On GPU, a loop over T steps would take longer than the rest of the update.
    return jax.lax.associative_scan(combine, (delta, decay), reverse=True)[0]
