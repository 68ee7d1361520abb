"""A cache of the last steps only: a ring of slots, whose size does not depend on the length of the trial.

A new step replaces the oldest one. Keys are rotated by the index of their episode when they are written, so the order
of the slots does not matter to a single step. A block of steps reads the slots in the order of their steps.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.attention import Context
from relic_jax.models.cache import KVCache, counted
from relic_jax.models.kv_formats import Slots

T = TypeVar("T")


class RingCache(KVCache):
    """A `KVCache` whose slot ``t mod S`` holds step t.

    Attributes:
        first_episode: int32 ``[B]``, index of the first episode of a trial.
    """

    first_episode: jax.Array

    @classmethod
    def of(cls, empty: KVCache) -> Self:
        """Return a ring with the slots of an empty cache."""
        fields = {field.name: getattr(empty, field.name) for field in dataclasses.fields(empty)}
        return cls(**fields, first_episode=jnp.copy(empty.episode))  # a buffer can be donated only once

    @property
    def capacity(self) -> int:
        """Unlimited."""
        return sys.maxsize

    @property
    def next_slot(self) -> jax.Array:
        """int32 ``[]``: the slot of the next step."""
        return self.filled % self.slots

    def context(self, layer: int) -> Context:
        """Return the context that a block of steps attends to in ``layer``, its slots in the order of the steps."""
        if not self.slots:
            return super().context(layer)
        keys, values, episodes = self.in_order((self.keys[layer], self.values[layer], self.episodes))
        return Context(keys, values, episodes, jnp.minimum(self.filled, self.slots))

    def in_order(self, slots: T) -> T:
        """Return arrays of slots in the order of their steps, the oldest first, then the slots without a step.

        Args:
            slots: Pytree of arrays ``[B, S]`` or ``[B, H, S, ...]``.
        """
        oldest = jnp.where(self.filled > self.slots, self.next_slot, 0)

        def rotate(x: jax.Array) -> jax.Array:
            axis = slot_axis(x)
            return lax.dynamic_slice_in_dim(jnp.concatenate([x, x], axis), oldest, self.slots, axis)

        return jax.tree.map(rotate, slots)

    def with_block(
        self, keys: list[jax.Array], values: list[jax.Array], position: jax.Array, episode: jax.Array, read: jax.Array
    ) -> KVCache:
        """Return the cache after a block of steps. See `KVCache.with_block`."""
        del read

        def write(layers: tuple[Slots, ...], new: list[jax.Array]) -> tuple[Slots, ...]:
            encoded = tuple(kv_formats.encode(x, self.kv_format) for x in new)
            return self.merged(layers, encoded, position.shape[1])

        cache = self.replace(
            keys=write(self.keys, keys),
            values=write(self.values, values),
            episodes=self.merged(self.episodes, episode, position.shape[1]),
        )
        return counted(cache, position, episode)

    def merged(self, old: T, new: T, steps: int) -> T:
        """Return slots after a block of steps.

        Args:
            old: Pytree of arrays ``[B, S]`` or ``[B, H, S, ...]``.
            new: The same of the block, with Q steps in place of S slots.
            steps: Q.
        """
        last = self.filled + steps - 1
        step = last - (last - jnp.arange(self.slots)) % self.slots  # the last step that belongs to each slot
        index = jnp.clip(step - self.filled, 0, steps - 1)

        def merge(x: jax.Array, y: jax.Array) -> jax.Array:
            axis = slot_axis(x)
            is_new = (step >= self.filled).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            return jnp.where(is_new, jnp.take(y, index, axis), x)

        return jax.tree.map(merge, old, new)

    def prefix(self, capacity: int) -> Self:
        """Return this memory. Its size is fixed."""
        del capacity
        return self

    def grown(self, capacity: int) -> Self:
        """Return this memory."""
        del capacity
        return self

    def last_steps(self, steps: int) -> Self:
        """Return this memory, the state after those steps."""
        del steps
        return self

    def append(self, added: KVCache) -> KVCache:
        """Return ``added``, the memory after the continuation."""
        return added

    def as_of(self, earlier: KVCache) -> KVCache:
        """Return ``earlier``."""
        return earlier

    def rewound(self, first: jax.Array, length: jax.Array | int) -> Self:
        """Return the empty memory. Earlier steps are not kept, so ``length`` must be 0."""
        del first
        return self.replace(
            length=jnp.full_like(self.length, length),
            position=jnp.full_like(self.position, -1),
            episode=self.first_episode,
        )


def slot_axis(x: jax.Array) -> int:
    """Return the axis of the slots: 1 of ``[B, S]``, 2 of ``[B, H, S, ...]``."""
    return min(x.ndim - 1, 2)
