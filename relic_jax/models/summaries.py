"""The memory of Memo: keys and values of the current segment's steps, and of the summaries of earlier segments."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.cache import KVCache, once_read
from relic_jax.models.kv_formats import Slots
from relic_jax.models.ring import RingCache


class Summaries(NamedTuple):
    """What one layer attends to.

    Attributes:
        keys: Slots of the current segment, ``[B, H, S, D]``. The first ``length mod S`` are filled.
        values: The same.
        summary_keys: Slots of all summaries, ``[B, H, G·P, D]``. Those of the first ``length / S`` segments are filled.
        summary_values: The same.
        length: int32 ``[]``, number of all steps of the trial so far.
    """

    keys: Slots
    values: Slots
    summary_keys: Slots
    summary_values: Slots
    length: jax.Array


class SummaryCache(RingCache):
    """A ring of the S steps of a segment, and the summaries of G segments.

    Attributes:
        summary_keys: One `Slots` of shape ``[B, H, G, P, D]`` per layer, rotated.
        summary_values: The same.
    """

    summary_keys: tuple[Slots, ...]
    summary_values: tuple[Slots, ...]

    @classmethod
    def with_room(cls, segment: KVCache, groups: int, tokens: int) -> Self:
        """Return an empty cache with the slots of an empty segment, and room for ``groups`` of ``tokens`` tokens."""
        ring = RingCache.of(segment)

        def empty() -> tuple[Slots, ...]:
            return tuple(
                jax.tree.map(lambda x: jnp.zeros((*x.shape[:2], groups, tokens, *x.shape[3:]), x.dtype), slots)
                for slots in segment.keys
            )

        fields = {field.name: getattr(ring, field.name) for field in dataclasses.fields(ring)}
        return cls(**fields, summary_keys=empty(), summary_values=empty())

    @property
    def groups(self) -> int:
        """G, the number of segments that there is room for."""
        return self.summary_keys[0].data.shape[2]

    @property
    def capacity(self) -> int:
        """Largest number of steps."""
        return self.groups * self.slots

    def past(self, layer: int) -> Summaries:
        """Return what ``layer`` attends to."""
        keys, values = (flattened(slots[layer]) for slots in (self.summary_keys, self.summary_values))
        return Summaries(self.keys[layer], self.values[layer], keys, values, self.filled)

    def with_summary(self, keys: list[jax.Array], values: list[jax.Array], read: jax.Array) -> Self:
        """Return the cache after a single step, with the summary of its segment.

        Args:
            keys: Keys of every layer ``[B, H, P, D]``. They are read only after the last step of the segment.
            values: The same.
            read: Any array that depends on all reads of the cache, see `once_read`.
        """
        group = once_read((self.filled - 1) // self.slots, read)

        def write(layers: tuple[Slots, ...], new: list[jax.Array]) -> tuple[Slots, ...]:
            return tuple(
                jax.tree.map(
                    lambda x, y: lax.dynamic_update_slice_in_dim(x, y[:, :, None], group, axis=2),
                    slots,
                    kv_formats.encode(tokens, self.kv_format),
                )
                for slots, tokens in zip(layers, new, strict=True)
            )

        return self.replace(
            summary_keys=write(self.summary_keys, keys), summary_values=write(self.summary_values, values)
        )

    def with_summaries(self, keys: list[jax.Array], values: list[jax.Array], before: jax.Array) -> Self:
        """Return the cache after a block of steps, with the summaries of the segments that end in it.

        Args:
            keys: Keys of every layer ``[B, H, G·P, D]``, of the block's first G segments.
            values: The same.
            before: int32 ``[]``, number of steps before the block.
        """
        first, end = before // self.slots, self.filled // self.slots
        group = jnp.arange(self.groups)
        is_new = (group >= first) & (group < end)

        def write(layers: tuple[Slots, ...], new: list[jax.Array]) -> tuple[Slots, ...]:
            return tuple(merged(slots, tokens) for slots, tokens in zip(layers, new, strict=True))

        def merged(slots: Slots, tokens: jax.Array) -> Slots:
            batch, heads, _, count, width = slots.data.shape
            grouped = tokens.reshape(batch, heads, -1, count, width)
            index = jnp.clip(group - first, 0, grouped.shape[2] - 1)

            def merge(old: jax.Array, new: jax.Array) -> jax.Array:
                mask = is_new.reshape(1, 1, -1, *[1] * (old.ndim - 3))
                return jnp.where(mask, jnp.take(new, index, axis=2), old)

            return jax.tree.map(merge, slots, kv_formats.encode(grouped, self.kv_format))

        return self.replace(
            summary_keys=write(self.summary_keys, keys), summary_values=write(self.summary_values, values)
        )

    def grown(self, capacity: int) -> Self:
        """Return a copy that has room for ``capacity`` steps, at least as many as now."""
        more = -(-capacity // self.slots) - self.groups

        def pad(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, more if axis == 2 else 0) for axis in range(x.ndim)])

        keys, values = jax.tree.map(pad, (self.summary_keys, self.summary_values))
        return self.replace(summary_keys=keys, summary_values=values)


def flattened(slots: Slots) -> Slots:
    """Return slots ``[B, H, G·P, D]`` of ``[B, H, G, P, D]``."""
    return jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1, *x.shape[4:]), slots)
