"""The clipped losses of PPO (Schulman et al. 2017, arXiv 1707.06347), elementwise. Callers average them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from relic_jax.distributions import Categorical


def policy_loss(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """Compute the clipped surrogate loss of the policy.

        ρ = exp(log π − log π_old),    loss = −min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A)

    Args:
        log_prob: log-probability under the current policy, float32 [...].
        old_log_prob: log-probability under the acting policy, float32 [...].
        advantage: A, float32 [...].
        clip: ε.

    Returns:
        float32 [...].
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_loss(value: jax.Array, old_value: jax.Array, returns: jax.Array, clip: float | None) -> jax.Array:
    """Compute the squared error ½(v − R)² of the value.

    A value that is further than `clip` from the old value is replaced by the bound, where the loss has no gradient.

    Args:
        value: v, float32 [...].
        old_value: value predicted before the update, float32 [...].
        returns: R, float32 [...].
        clip: largest change of the value, or None for no clipping.

    Returns:
        float32 [...].
    """
    if clip is not None:
        delta = jax.lax.stop_gradient(value) - old_value
        value = jnp.where(jnp.abs(delta) < clip, value, old_value + jnp.clip(delta, -clip, clip))
    return 0.5 * jnp.square(value - returns)


def action_loss(distribution: Categorical, probabilities: jax.Array) -> jax.Array:
    """Compute the Kullback–Leibler divergence of a policy from a teacher's distribution over actions, in nats.

        Σ p·(log p − log π)

    The divergence has the gradient of the cross-entropy −Σ p·log π, and it is 0 if the policy equals the teacher.

    Args:
        distribution: π, with leading axes [...].
        probabilities: p, float32 [..., n]. The loss is 0 if all of them are 0.

    Returns:
        float32 [...].
    """
    return (jax.scipy.special.xlogy(probabilities, probabilities) - probabilities * distribution.log_p).sum(-1)


def recall_loss(log_probs: tuple[jax.Array, ...], answers: jax.Array) -> jax.Array:
    """Compute the cross-entropy of the answers of the recall head, summed over the answers, in nats.

    Args:
        log_probs: of each answer, float32 [..., classes].
        answers: int32 [..., number of answers].

    Returns:
        float32 [...].
    """
    nats = [
        -jnp.take_along_axis(log_prob, answers[..., number, None], axis=-1)[..., 0]
        for number, log_prob in enumerate(log_probs)
    ]
    return sum(nats, jnp.zeros(answers.shape[:-1]))


def recall_right(log_probs: tuple[jax.Array, ...], answers: jax.Array) -> jax.Array:
    """Return whether the most probable class of every answer is the label, bool [...]. Arguments: see `recall_loss`."""
    chosen = jnp.stack([log_prob.argmax(-1) for log_prob in log_probs], axis=-1)
    return (chosen == answers).all(-1)
