"""Checks of the training record in an export's config.json."""

from __future__ import annotations

from typing import Any

from relic_jax.config import ConfigError
from relic_jax.validation import shown


def check_training(training: dict[str, Any]) -> None:
    """Raise ConfigError at the first field of the `training` in a config.json that does not fit."""
    for name in ("env_steps", "seconds"):
        value = training.get(name)
        fits = value is None or (_is_number(value) and 0 <= value < 2**63)
        _require(fits, f"training.{name}", value, "a number, 0 or more and below 2^63")
    for name in ("command", "commit", "device", "jax", "run", "preset"):
        value = training.get(name)
        _require(value is None or isinstance(value, str), f"training.{name}", value, "text")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _require(condition: Any, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {shown(value)}; allowed: {allowed}")
