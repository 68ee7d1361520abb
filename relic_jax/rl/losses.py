"""The clipped PPO losses (Schulman et al. 2017, arXiv 1707.06347), as ReLIC uses them. Elementwise; callers average."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def policy_loss(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) with ρ = exp(log π − log π_old). All float32 [...]."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_loss(value: jax.Array, old_value: jax.Array, returns: jax.Array, clip: float | None) -> jax.Array:
    """½(v − R)², where a v further than `clip` from the old value is replaced by the bound: no gradient there.

    All float32 [...]. clip None: no clipping.
    """
    if clip is not None:
        delta = jax.lax.stop_gradient(value) - old_value
        value = jnp.where(jnp.abs(delta) < clip, value, old_value + jnp.clip(delta, -clip, clip))
    return 0.5 * jnp.square(value - returns)
