"""Action distributions: one small interface, `sample`, `log_prob`, `entropy`, `mode`, over pytrees of parameters."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct


class Distribution(Protocol):
    """Batched over every leading axis of its parameters; heads for continuous actions implement the same."""

    def sample(self, key: jax.Array) -> jax.Array: ...

    def log_prob(self, action: jax.Array) -> jax.Array: ...

    def entropy(self) -> jax.Array: ...

    def mode(self) -> jax.Array: ...


@struct.dataclass
class Categorical:
    """logits: float32 [..., n], not necessarily normalised. Actions are int32 [...]."""

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jax.nn.log_softmax(self.logits), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        log_p = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)
