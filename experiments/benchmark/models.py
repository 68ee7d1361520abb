"""What the benchmarks run: setups with a context of a given length, and the operations and bytes that they need."""

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
    """One epoch of one minibatch on one device, Darkroom."""
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
    """A state whose trial has got `length` steps far (all zeros: times do not depend on the numbers)."""

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
    """Weights that every step is multiplied by: those of the blocks and of the two projections around them."""
    return cfg.layers * (4 * cfg.width**2 + 3 * cfg.width * cfg.mlp_width) + 2 * cfg.width**2


def update_flops(cfg: TransformerConfig, batch: int, queries: int, context: int) -> float:
    """Of one epoch with the context's gradient stopped.

    Against the context five products (scores and output forward; scores again, and gradients of weights and queries
    backward); among the block's own steps, of which half are visible, gradients of keys and values besides.
    """
    product = 2 * batch * queries * cfg.width * cfg.layers
    return product * (5 * context + 7 * queries / 2) + 6 * dense_parameters(cfg) * batch * queries


def refresh_flops(cfg: TransformerConfig, batch: int, steps: int) -> float:
    """Of recomputing a context of `steps`."""
    return batch * (2 * cfg.layers * steps**2 * cfg.width + 2 * dense_parameters(cfg) * steps)


def act_bytes(cfg: TransformerConfig, batch: int, context: int) -> float:
    """That one acting step has to read: every key and value."""
    return float(batch * context * cfg.cache_bytes_per_step)
