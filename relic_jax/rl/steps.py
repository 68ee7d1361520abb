"""A step counter of 64 bits in two 32-bit words: JAX has no 64-bit integers by default."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

_WORD = 2**32


class StepCount(struct.PyTreeNode):
    """A number of steps, 0 … 2^64 − 1. high, low: uint32 []; the number is high · 2^32 + low.

    `count + n` works under jit; `int(count)` reads it on the host.
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, steps: StepCount | jax.Array | int) -> StepCount:
        """The counter that stands at `steps`: a counter, an array int32 [] or uint32 [], or any Python integer."""
        if isinstance(steps, StepCount):
            return steps
        if not isinstance(steps, int):
            return cls(jnp.zeros_like(steps, jnp.uint32), jnp.asarray(steps, jnp.uint32))
        high, low = divmod(steps, _WORD)
        return cls(jnp.asarray(high, jnp.uint32), jnp.asarray(low, jnp.uint32))

    def __int__(self) -> int:
        return int(self.high) * _WORD + int(self.low)

    def __add__(self, steps: int) -> StepCount:
        """`steps` later. steps: 0 or more, static."""
        high, low = (np.uint32(word) for word in divmod(steps, _WORD))
        total = self.low + low
        carry = (total < low).astype(jnp.uint32)
        return StepCount(self.high + high + carry, total)

    def since(self, steps: int) -> StepCount:
        """How much is over `steps` (static), 0 before that. Exact."""
        high, low = (np.uint32(word) for word in divmod(steps, _WORD))
        borrow = (self.low < low).astype(jnp.uint32)
        before = self.is_before(steps)
        return StepCount(
            jnp.where(before, np.uint32(0), self.high - high - borrow), jnp.where(before, np.uint32(0), self.low - low)
        )

    def is_before(self, steps: int) -> jax.Array:
        """Whether the counter is less than `steps` (static): bool []."""
        high, low = (np.uint32(word) for word in divmod(steps, _WORD))
        return (self.high < high) | ((self.high == high) & (self.low < low))

    def as_float(self) -> jax.Array:
        """The nearest float32 [] (to within one rounding more, from 2^32 on)."""
        return self.high.astype(jnp.float32) * np.float32(_WORD) + self.low.astype(jnp.float32)
