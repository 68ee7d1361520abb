"""A config that compiles and trains within seconds, for tests and fault injection."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from relic_jax.config import EnvConfig, EvalConfig, PolicyConfig, PPOConfig, TrainConfig, TransformerConfig, TrialConfig

PER_UPDATE = 64
"""Environment steps of one update."""


def small_config(
    chunk: Literal["trial", "segment"] = "segment", env: str = "darkroom-ad-9-random", **changes: Any
) -> TrainConfig:
    """Return a config of two trials of four updates that compiles fast. `changes` are other fields of TrainConfig."""
    transformer = TransformerConfig(layers=1, heads=2, width=8, mlp_width=8, max_positions=128, attention="reference")
    learning = PPOConfig(
        lr=1e-3,
        warmup_steps=0,
        epochs=1,
        minibatches=2,
        accumulate=1,
        context_gradient="stopped",
        last_update="partial",
    )
    config = TrainConfig(
        env=EnvConfig(env),
        total_steps=512,
        chunk=chunk,
        devices=1,
        checkpoint_minutes=1e-9,
        policy=PolicyConfig(transformer),
        trial=TrialConfig(environments=4, steps=64, updates=4),
        ppo=learning,
        eval=EvalConfig(episodes=2),
    )
    return dataclasses.replace(config, **changes)
