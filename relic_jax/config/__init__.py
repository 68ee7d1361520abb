"""Configuration: frozen dataclasses with documented defaults, their JSON form and their checks."""

from relic_jax.config.environment import EnvConfig, Options, WorkerConfig
from relic_jax.config.reading import read
from relic_jax.config.sections import EvalConfig, PPOConfig, TrialConfig
from relic_jax.config.serialization import (
    changed,
    differences,
    from_data,
    from_json,
    leaves,
    to_data,
    to_json,
    value_of,
)
from relic_jax.config.train import TrainConfig
from relic_jax.models.policy import PolicyConfig
from relic_jax.runtime import ConfigError
from relic_jax.validation import devices_fit, validate, validate_env, validate_workers

__all__ = [
    "ConfigError",
    "EnvConfig",
    "EvalConfig",
    "Options",
    "PPOConfig",
    "PolicyConfig",
    "TrainConfig",
    "TrialConfig",
    "WorkerConfig",
    "changed",
    "devices_fit",
    "differences",
    "from_data",
    "from_json",
    "leaves",
    "read",
    "to_data",
    "to_json",
    "validate",
    "validate_env",
    "validate_workers",
    "value_of",
]
