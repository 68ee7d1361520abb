"""Action distributions: one small interface, `sample`, `log_prob`, `entropy`, `mode`, over pytrees of parameters."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct


class Distribution(Protocol):
    """Batched over every leading axis of its parameters; heads for continuous actions implement the same."""

    def sample(self, key: jax.Array) -> jax.Array:
        """One action per leading index. key: typed PRNG key []."""
        ...

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability (or density) of `action`: float32 [...]."""
        ...

    def entropy(self) -> jax.Array:
        """Entropy in nats: float32 [...]."""
        ...

    def mode(self) -> jax.Array:
        """The most likely action."""
        ...


@struct.dataclass
class Categorical:
    """logits: float32 [..., n], not necessarily normalised. Actions are int32 [...]."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """int32 [...]. key: typed PRNG key []."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """float32 [...]; action: int32 [...]."""
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """In nats: float32 [...]."""
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def mode(self) -> jax.Array:
        """The most likely action: int32 [...]."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)
