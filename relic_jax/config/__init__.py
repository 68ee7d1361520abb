"""Configuration: frozen dataclasses with documented defaults, their checks and their JSON form.

Importing it imports neither JAX nor Flax nor Orbax.
"""

from relic_jax.config.curriculum import CurriculumConfig
from relic_jax.config.environment import EnvConfig, Options, WorkerConfig
from relic_jax.config.fields import changed, differences, leaves, value_of
from relic_jax.config.linear_rnn import LinearRNNConfig
from relic_jax.config.policy import EncoderConfig, HeadConfig, PolicyConfig, RecurrentConfig, TransformerConfig
from relic_jax.config.pretraining import PretrainConfig
from relic_jax.config.reading import read
from relic_jax.config.sections import EvalConfig, PPOConfig, TrialConfig
from relic_jax.config.serialization import from_data, from_json, to_data, to_json
from relic_jax.config.train import TrainConfig, check_acting_fields, check_fields, devices_fit, validate
from relic_jax.errors import ConfigError

__all__ = [
    "ConfigError",
    "CurriculumConfig",
    "EncoderConfig",
    "EnvConfig",
    "EvalConfig",
    "HeadConfig",
    "LinearRNNConfig",
    "Options",
    "PPOConfig",
    "PolicyConfig",
    "PretrainConfig",
    "RecurrentConfig",
    "TrainConfig",
    "TransformerConfig",
    "TrialConfig",
    "WorkerConfig",
    "changed",
    "check_acting_fields",
    "check_fields",
    "devices_fit",
    "differences",
    "from_data",
    "from_json",
    "leaves",
    "read",
    "to_data",
    "to_json",
    "validate",
    "value_of",
]
