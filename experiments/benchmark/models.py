"""Setups of the benchmarks with a filled context, and the operations and bytes that a step needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import PolicyConfig, PPOConfig, TrainConfig, TransformerConfig, TrialConfig
from relic_jax.envs.registry import make
from relic_jax.experiments.presets import SMALL
from relic_jax.rl.state import Setup, TrainState, init_state, make_setup

MODEL = replace(SMALL, depth_dropout=0.0)


def benchmark_setup(environments: int, steps: int, segment: int, transformer: TransformerConfig = MODEL) -> Setup:
    """Return a Darkroom setup on one device with one epoch and one minibatch per update."""
    ppo = PPOConfig(
        epochs=1, minibatches=1, accumulate=1, context_gradient="stopped", last_update="partial", shuffle=False
    )
    config = TrainConfig(
        devices=1,
        policy=PolicyConfig(transformer=transformer),
        trial=TrialConfig(environments=environments, steps=steps, updates=steps // segment),
        ppo=ppo,
    )
    return make_setup(config, make(config.env))


def state_with_context(setup: Setup, length: int) -> TrainState:
    """Return a state after `length` steps of a trial, all zeros: times do not depend on the values."""

    @jax.jit
    def begin() -> TrainState:
        state = init_state(setup)
        memory: Any = state.memory
        memory = memory.replace(
            length=jnp.full_like(memory.length, length),
            episodes=jnp.ones_like(memory.episodes),
            position=jnp.zeros_like(memory.position),
        )
        return state.replace(memory=memory, segment=jnp.asarray(length // setup.config.trial.segment))

    return begin()


def dense_parameters(cfg: TransformerConfig) -> int:
    """Return the number of weights of the blocks and of the two projections around them."""
    return cfg.layers * (4 * cfg.width**2 + 3 * cfg.width * cfg.mlp_width) + 2 * cfg.width**2


def update_flops(cfg: TransformerConfig, batch: int, queries: int, context: int) -> float:
    """Return the floating-point operations of one epoch with the gradient stopped at the context.

    Attention to the context takes five products: scores and output forward; scores, gradients of weights and gradients
    of queries backward. Attention within the block, of which half is visible, also needs gradients of keys and values.
    """
    product = 2 * batch * queries * cfg.width * cfg.layers
    return product * (5 * context + 7 * queries / 2) + 6 * dense_parameters(cfg) * batch * queries


def refresh_flops(cfg: TransformerConfig, batch: int, steps: int) -> float:
    """Return the floating-point operations of recomputing a context of `steps` steps."""
    return batch * (2 * cfg.layers * steps**2 * cfg.width + 2 * dense_parameters(cfg) * steps)


def act_bytes(cfg: TransformerConfig, batch: int, context: int) -> float:
    """Return the bytes of all keys and values, which one acting step has to read."""
    return float(batch * context * cfg.cache_bytes_per_step)
