"""Gymnasium environments as a worker's environments. Python 3.8 and numpy; gymnasium is imported when one is made."""

from __future__ import annotations

from relic_jax.bridge.gym.environment import GymEnvironment

__all__ = ["GymEnvironment"]
