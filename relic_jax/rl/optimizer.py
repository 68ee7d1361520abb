"""Adam with ReLIC's clip, and its schedules in environment steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from relic_jax.config import PPOConfig
from relic_jax.rl.steps import StepCount
from relic_jax.types import Params, PyTree


def make_optimizer(ppo: PPOConfig) -> optax.GradientTransformation:
    """Norm clip over everything but the critic head, then Adam's direction; the learning rate is applied outside,
    because it follows environment steps and not optimiser steps.
    """
    return optax.chain(
        optax.masked(optax.clip_by_global_norm(ppo.max_grad_norm), clipped_mask),
        optax.scale_by_adam(eps=ppo.adam_eps),
    )


def clipped_mask(params: Params) -> PyTree:
    """True where the norm clip applies."""
    return {name: jax.tree.map(lambda _, clip=name != "critic": clip, leaves) for name, leaves in params.items()}


def global_norm(tree: PyTree) -> jax.Array:
    """Euclidean norm over all leaves: float32 []."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


Steps = StepCount | jax.Array | int
"""Environment steps taken so far, what `StepCount.of` takes."""


def learning_rate(ppo: PPOConfig, total_steps: int, env_steps: Steps) -> jax.Array:
    """Linear warm-up from 1e-3 of the peak, then cosine to `lr_final`. Returns float32 []."""
    env_steps = StepCount.of(env_steps)
    # floats: optax's schedules would convert larger integers than 2^31 to int32
    warmup = optax.linear_schedule(1e-3 * ppo.lr, ppo.lr, float(max(ppo.warmup_steps, 1)))
    decay_steps = float(max(total_steps - ppo.warmup_steps, 1))
    cosine = optax.cosine_decay_schedule(ppo.lr, decay_steps, alpha=ppo.lr_final / ppo.lr)
    later = env_steps.since(ppo.warmup_steps)
    return jnp.where(env_steps.is_before(ppo.warmup_steps), warmup(env_steps.as_float()), cosine(later.as_float()))


def entropy_coef(ppo: PPOConfig, total_steps: int, env_steps: Steps) -> jax.Array:
    """Weight of the entropy bonus, linear over the run. Returns float32 []."""
    final = ppo.entropy_coef if ppo.entropy_coef_final is None else ppo.entropy_coef_final
    progress = jnp.minimum(StepCount.of(env_steps).as_float() / float(total_steps), 1.0)
    return ppo.entropy_coef + (final - ppo.entropy_coef) * progress
