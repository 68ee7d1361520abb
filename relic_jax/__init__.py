"""In-context reinforcement learning in JAX: policies that improve over long trials with frozen weights.

    run = relic_jax.train("darkroom-dpt", total_steps=1_000_000)
    agent = run.agent()

Names are imported on first use: simulator workers (`relic_jax.bridge.worker`) import this package in interpreters
without jax and with an older Python. `train`, `load_run`, `make_env` and `Run` come from `relic_jax.experiments`, which
nothing else in this library imports.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relic_jax.agent import Agent
    from relic_jax.config import (
        ConfigError,
        EncoderConfig,
        EnvConfig,
        EvalConfig,
        PolicyConfig,
        PPOConfig,
        RecurrentConfig,
        TrainConfig,
        TransformerConfig,
        TrialConfig,
        WorkerConfig,
    )
    from relic_jax.experiments.api import Run, load_run, make_env, train
    from relic_jax.loading import LoadedPolicy, load_policy, pretrained
    from relic_jax.models.policy import Policy, policy_for

__all__ = [
    "Agent",
    "ConfigError",
    "EncoderConfig",
    "EnvConfig",
    "EvalConfig",
    "LoadedPolicy",
    "PPOConfig",
    "Policy",
    "PolicyConfig",
    "RecurrentConfig",
    "Run",
    "TrainConfig",
    "TransformerConfig",
    "TrialConfig",
    "WorkerConfig",
    "load_policy",
    "load_run",
    "make_env",
    "policy_for",
    "pretrained",
    "train",
]

_MODULES = {
    "Agent": "relic_jax.agent",
    "LoadedPolicy": "relic_jax.loading",
    "Policy": "relic_jax.models.policy",
    "Run": "relic_jax.experiments.api",
    "load_policy": "relic_jax.loading",
    "load_run": "relic_jax.experiments.api",
    "make_env": "relic_jax.experiments.api",
    "policy_for": "relic_jax.models.policy",
    "pretrained": "relic_jax.loading",
    "train": "relic_jax.experiments.api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "relic_jax.config")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
