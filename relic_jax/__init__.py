"""In-context reinforcement learning in JAX: policies trained over long trials, which improve with weights frozen.

Names are imported on first use: simulator workers (`relic_jax.bridge.worker`) import this package in interpreters that
have neither jax nor a Python as new as ours.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relic_jax.config import ConfigError, EvalConfig, PPOConfig, TrainConfig, TrialConfig
    from relic_jax.models.encoders import EncoderConfig
    from relic_jax.models.policy import Policy, PolicyConfig, policy_for
    from relic_jax.models.recurrent import RecurrentConfig
    from relic_jax.models.transformer import TransformerConfig

__all__ = [
    "ConfigError",
    "EncoderConfig",
    "EvalConfig",
    "PPOConfig",
    "Policy",
    "PolicyConfig",
    "RecurrentConfig",
    "TrainConfig",
    "TransformerConfig",
    "TrialConfig",
    "policy_for",
]

_MODULES = {
    "EncoderConfig": "relic_jax.models.encoders",
    "Policy": "relic_jax.models.policy",
    "PolicyConfig": "relic_jax.models.policy",
    "RecurrentConfig": "relic_jax.models.recurrent",
    "TransformerConfig": "relic_jax.models.transformer",
    "policy_for": "relic_jax.models.policy",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "relic_jax.config")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
