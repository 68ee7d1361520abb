"""Adam with the gradient clipping of ReLIC, and schedules over environment steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from relic_jax.config import PPOConfig
from relic_jax.rl.steps import StepCount
from relic_jax.types import Params, PyTree

Steps = StepCount | jax.Array | int
"""Number of environment steps so far, in any form that `StepCount.of` accepts."""


def make_optimizer(ppo: PPOConfig) -> optax.GradientTransformation:
    """Return the optimizer: clipping by the global norm of everything except the critic head, then Adam.

    The learning rate is applied by the caller, because it depends on environment steps and not on optimizer steps.
    """
    return optax.chain(
        optax.masked(optax.clip_by_global_norm(ppo.max_grad_norm), clipped_mask),
        optax.scale_by_adam(eps=ppo.adam_eps),
    )


def clipped_mask(params: Params) -> PyTree:
    """Return the tree of `params` with True for each array whose gradient is clipped."""
    return {name: jax.tree.map(lambda _, clip=name != "critic": clip, leaves) for name, leaves in params.items()}


def learning_rate(ppo: PPOConfig, total_steps: int, env_steps: Steps) -> jax.Array:
    """Return the learning rate, float32 []: a linear warm-up from 1e-3·lr to lr, then a cosine decay to `lr_final`."""
    env_steps = StepCount.of(env_steps)
    # floats, because the schedules of optax would convert integers above 2^31 to int32
    warmup = optax.linear_schedule(1e-3 * ppo.lr, ppo.lr, float(max(ppo.warmup_steps, 1)))
    decay_steps = float(max(total_steps - ppo.warmup_steps, 1))
    cosine = optax.cosine_decay_schedule(ppo.lr, decay_steps, alpha=ppo.lr_final / ppo.lr)
    later = env_steps.since(ppo.warmup_steps)
    return jnp.where(env_steps.is_before(ppo.warmup_steps), warmup(env_steps.as_float()), cosine(later.as_float()))


def entropy_coef(ppo: PPOConfig, total_steps: int, env_steps: Steps) -> jax.Array:
    """Return the weight of the entropy bonus, float32 [], which changes linearly over the run."""
    return _linear(ppo.entropy_coef, ppo.entropy_coef_final, total_steps, env_steps)


def recall_coef(ppo: PPOConfig, total_steps: int, env_steps: Steps) -> jax.Array:
    """Return the weight of the recall loss, float32 [], which changes linearly over the run."""
    return _linear(ppo.recall_coef, ppo.recall_coef_final, total_steps, env_steps)


def teacher_coef(ppo: PPOConfig, total_steps: int, env_steps: Steps) -> jax.Array:
    """Return the weight of the teacher loss, float32 [], which changes linearly over the run."""
    return _linear(ppo.teacher_coef, ppo.teacher_coef_final, total_steps, env_steps)


def _linear(start: float, final: float | None, total_steps: int, env_steps: Steps) -> jax.Array:
    final = start if final is None else final
    progress = jnp.minimum(StepCount.of(env_steps).as_float() / float(total_steps), 1.0)
    return start + (final - start) * progress
