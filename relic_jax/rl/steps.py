"""A 64-bit step counter in two 32-bit words, because JAX has no 64-bit integers by default."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_WORD = 2**32


class StepCount(struct.PyTreeNode):
    """A number of steps, 0 … 2^64 − 1, equal to high·2^32 + low.

    `count + n` works under jit. `int(count)` reads the number on the host.

    Attributes:
        high: uint32 [].
        low: uint32 [].
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, steps: StepCount | jax.Array | int) -> StepCount:
        """Convert a counter, an array (int32 [] or uint32 []) or a Python integer to a counter."""
        if isinstance(steps, StepCount):
            return steps
        if not isinstance(steps, int):
            return cls(jnp.zeros_like(steps, jnp.uint32), jnp.asarray(steps, jnp.uint32))
        high, low = divmod(steps, _WORD)
        return cls(jnp.asarray(high, jnp.uint32), jnp.asarray(low, jnp.uint32))

    def __int__(self) -> int:
        return int(self.high) * _WORD + int(self.low)

    def __add__(self, steps: int) -> StepCount:
        """Add a static number of steps, 0 or more."""
        high, low = (np.uint32(word) for word in divmod(steps, _WORD))
        total = self.low + low
        carry = (total < low).astype(jnp.uint32)
        return StepCount(self.high + high + carry, total)

    def since(self, steps: int) -> StepCount:
        """Return the exact difference to a static number of steps, or 0 if the counter is smaller."""
        high, low = (np.uint32(word) for word in divmod(steps, _WORD))
        borrow = (self.low < low).astype(jnp.uint32)
        before = self.is_before(steps)
        return StepCount(
            jnp.where(before, np.uint32(0), self.high - high - borrow), jnp.where(before, np.uint32(0), self.low - low)
        )

    def is_before(self, steps: int) -> jax.Array:
        """Return whether the counter is less than a static number of steps: bool []."""
        high, low = (np.uint32(word) for word in divmod(steps, _WORD))
        return (self.high < high) | ((self.high == high) & (self.low < low))

    def as_float(self) -> jax.Array:
        """Return the number as float32 []. From 2^32 on, it can be off by one additional rounding."""
        return self.high.astype(jnp.float32) * np.float32(_WORD) + self.low.astype(jnp.float32)
