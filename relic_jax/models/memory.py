"""The interface of a policy's memory, which is the same for training and evaluation with every kind of memory.

A memory is a pytree of arrays with leading axis B, the environments. For example, `cache.KVCache` keeps every step
(transformer), and `recurrent.Carry` keeps a state of fixed size (RL²). `memories.KINDS` lists all kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax


class Memory(Protocol):
    """The policy's memory of a trial. Memories are immutable, so every method returns a new one."""

    @property
    def length(self) -> jax.Array:
        """int32 ``[B]``: number of steps in the memory. It is equal for all environments."""

    @property
    def filled(self) -> jax.Array:
        """int32 ``[]``: the same number as a scalar."""

    @property
    def capacity(self) -> int:
        """Largest number of steps."""

    def replace(self, **fields: Any) -> Self:
        """Replace some of the arrays."""

    def prefix(self, capacity: int) -> Self:
        """Return a copy that has room for `capacity` steps and holds the first of them."""

    def grown(self, capacity: int) -> Self:
        """Return a copy that has room for `capacity` steps, at least as many as now."""

    def last_steps(self, steps: int) -> Self:
        """Return the part that the last `steps` steps added, for `append`."""

    def append(self, added: Self) -> Self:
        """Return this memory followed by the `last_steps` of its continuation."""

    def as_of(self, earlier: Self) -> Self:
        """Return this memory as it was at `earlier`, a memory of which it is the continuation.

        Only the counters of `earlier` are guaranteed to be read.
        """

    def rewound(self, first: jax.Array, length: jax.Array | int) -> Self:
        """Return this memory as it was when it held fewer steps.

        A recurrent memory does not keep its steps and can only be rewound to the start.

        Args:
            first: bool ``[B, T]``, whether a step of the trial is the first of its episode.
            length: int32 ``[]``, number of steps to keep.

        Returns:
            The memory with the counters of that time.
        """


M = TypeVar("M", bound=Memory)


def rows(memory: M, index: jax.Array) -> M:
    """Return the memory of the environments `index`, int32 ``[b]``."""
    if jax.default_backend() != "cpu":
        return jax.tree.map(lambda x: x[index], memory)

    def one(i: jax.Array) -> M:
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), memory)

    return lax.map(one, index)  # on CPU, XLA would gather element by element


def joined(parts: Sequence[M]) -> M:
    """Concatenate the memories of several groups of environments, the inverse of `rows`."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
