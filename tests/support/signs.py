"""A tiny environment with an image, for runs whose policy has spatial attention."""

import dataclasses

import jax.numpy as jnp

from relic_jax.environment.base import Image
from relic_jax.envs.probes.env import PolicyProbe


@dataclasses.dataclass(frozen=True)
class Signs(PolicyProbe):
    """Rewards actions that name the bright half of an image of 2×2 pixels."""

    name: str = "probe-signs"
    horizon: int = 2

    @property
    def observation_spec(self):
        return Image((2, 2, 1), jnp.uint8)

    def observe(self, state):
        bright = (jnp.arange(2) == state.cue)[:, None, None]
        return jnp.broadcast_to(jnp.where(bright, 200, 50), (2, 2, 1)).astype(jnp.uint8)
