"""What every kind of memory of a policy offers, so that training and evaluation need not know which one it is.

A memory is a pytree of arrays that lead with B (environments), but for `length`, which all environments share. There
are two kinds: `cache.KVCache` keeps every step (transformer), `recurrent.Carry` a state of fixed size (RL²).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax


class Memory(Protocol):
    """A trial so far, as its policy remembers it. Immutable; every method returns another one."""

    @property
    def length(self) -> jax.Array:
        """int32 []; steps that went in, the same number for every environment."""

    @property
    def capacity(self) -> int:
        """Steps that there is room for."""

    def replace(self, **fields: Any) -> Self:
        """The same with other arrays in some fields."""

    def prefix(self, capacity: int) -> Self:
        """A copy with room for `capacity` steps only, which holds the first of those that are in it."""

    def grown(self, capacity: int) -> Self:
        """A copy with room for `capacity` steps, no fewer than now."""

    def last_steps(self, steps: int) -> Self:
        """What the last `steps` steps added, for `append`."""

    def append(self, added: Self) -> Self:
        """This memory followed by what `last_steps` took from its own continuation."""

    def as_of(self, earlier: Self) -> Self:
        """This memory as it was at `earlier`, of which it is the continuation. May read no more than its counters."""

    def rewound(self, first: jax.Array, length: jax.Array | int) -> Self:
        """This memory as it was when it held `length` (int32 []) steps.

        first: bool [B, T], which steps of the trial open an episode. A memory that keeps no steps can only be emptied.
        """


M = TypeVar("M", bound=Memory)


def rows(memory: M, index: jax.Array) -> M:
    """The environments `index` (int32 [b]) of a memory."""
    if jax.default_backend() != "cpu":
        return jax.tree.map(lambda x: x[index], memory.replace(length=None)).replace(length=memory.length)

    def one(i: jax.Array) -> M:
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), memory.replace(length=None))

    return lax.map(one, index).replace(length=memory.length)  # XLA on CPU would gather number by number


def joined(parts: Sequence[M]) -> M:
    """Memories of some environments each, all of one length, as one of all: the inverse of `rows`."""
    return jax.tree.map(lambda *x: jnp.concatenate(x) if x[0].ndim else x[0], *parts)
