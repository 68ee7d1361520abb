"""In-context reinforcement learning in JAX: policies trained over long trials, which improve with weights frozen."""

from relic_jax.config import ConfigError, EvalConfig, PPOConfig, TrainConfig, TrialConfig
from relic_jax.models.encoders import EncoderConfig
from relic_jax.models.policy import Policy, PolicyConfig, policy_for
from relic_jax.models.transformer import TransformerConfig

__all__ = [
    "ConfigError",
    "EncoderConfig",
    "EvalConfig",
    "PPOConfig",
    "Policy",
    "PolicyConfig",
    "TrainConfig",
    "TransformerConfig",
    "TrialConfig",
    "policy_for",
]
