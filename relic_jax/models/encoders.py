"""Encoders: from what the policy reads at a step to one vector."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from relic_jax.types import StepInput


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """How a step's inputs become one vector."""

    observation: Literal["raw", "scaled"] = "raw"
    """raw: vector observations as they are, action embeddings N(0, 1) (the original); scaled: each component's range
    mapped to [−1, 1] and action embeddings of unit length, so that no input drowns the others at the start."""
    reward: bool = True
    """Feed the previous reward."""


class VectorEncoder(nn.Module):
    """Concatenates [observation, previous reward, embedding of the previous action].

    The embedding has a start token of its own, used at the first step of each episode.
    """

    config: EncoderConfig
    num_actions: int
    width: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    @nn.compact
    def __call__(self, inputs: StepInput) -> jax.Array:
        """inputs: leading axes [...]. Returns float32 [..., features]."""
        observation = inputs.observation.astype(jnp.float32)
        if self.config.observation == "scaled":
            low, high = jnp.asarray(self.low), jnp.asarray(self.high)
            observation = 2 * (observation - low) / (high - low) - 1
        std = 1.0 if self.config.observation == "raw" else self.width**-0.5
        embed = nn.Embed(self.num_actions + 1, self.width, embedding_init=nn.initializers.normal(std), name="action")
        parts = [observation, embed(inputs.previous_action + 1)]
        if self.config.reward:
            parts.insert(1, inputs.previous_reward[..., None].astype(jnp.float32))
        return jnp.concatenate(parts, axis=-1)
