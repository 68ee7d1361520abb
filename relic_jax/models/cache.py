"""The memory of a transformer policy: keys and values of every past step, preallocated for the whole trial."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.attention import Context
from relic_jax.models.kv_formats import KVFormat, Slots

Steps = TypeVar("Steps", int, jax.Array)


class KVCache(struct.PyTreeNode):
    """The keys and values of all past steps, passed in and returned explicitly.

    There is one array per layer. Stacked layers, or another order of the axes, are 4 to 15 times slower.

    Attributes:
        keys: One `Slots` of shape ``[B, H, S, D]`` per layer, rotated.
        values: One `Slots` of shape ``[B, H, S, D]`` per layer.
        episodes: int32 ``[B, S]``, index of the episode of each slot.
        length: int32 ``[B]``, number of filled slots. It is the same for every environment.
        position: int32 ``[B]``, index of the last step in its episode. −1 if the cache is empty.
        episode: int32 ``[B]``, index of the current episode.
    """

    keys: tuple[Slots, ...]
    values: tuple[Slots, ...]
    episodes: jax.Array
    length: jax.Array
    position: jax.Array
    episode: jax.Array

    @property
    def filled(self) -> jax.Array:
        """int32 ``[]``: the number of filled slots, which is `length` of any environment."""
        return self.length[0]

    @property
    def capacity(self) -> int:
        """S, the number of slots."""
        return self.slots

    @property
    def kv_format(self) -> KVFormat:
        """The format of the keys and values."""
        return self.keys[0].kv_format

    @property
    def slots(self) -> int:
        """S, the number of slots."""
        return self.episodes.shape[1]

    @property
    def axis(self) -> str | None:
        """Name of the device axis over which the steps are split, see `sharded.ShardedCache`. None if they are not."""
        return None

    @property
    def next_slot(self) -> jax.Array:
        """int32 ``[]``: the slot of the next step."""
        return self.slots_of(self.filled)

    @property
    def stores_next(self) -> jax.Array | None:
        """Whether the next step is stored on this device, bool ``[]``. None if every step is."""
        return None

    def slots_of(self, steps: Steps) -> Steps:
        """Return the number of slots of a number of steps. They differ if the steps are split over devices."""
        return steps

    def context(self, layer: int) -> Context:
        """Return the context that a block of steps attends to in ``layer``, its slots in the order of the steps."""
        return Context(self.keys[layer], self.values[layer], self.episodes, self.filled)

    def step_context(self, layer: int, episode: jax.Array) -> Context:
        """Return the context of a single step in ``layer``. Its counters include the step, its keys do not.

        Args:
            layer: Number of the layer.
            episode: int32 ``[B, 1]``, index of the step's episode.
        """
        episodes = lax.dynamic_update_slice_in_dim(self.episodes, episode, self.next_slot, axis=1)
        length = jnp.minimum(self.filled + 1, self.slots)
        return Context(self.keys[layer], self.values[layer], episodes, length)

    def with_step(self, keys: list[Slots], values: list[Slots], position: jax.Array, episode: jax.Array) -> KVCache:
        """Return the cache after a single step.

        Args:
            keys: Slots of every layer with the step written.
            values: Slots of every layer with the step written.
            position: int32 ``[B, 1]``.
            episode: int32 ``[B, 1]``.
        """
        return advance(self.replace(keys=tuple(keys), values=tuple(values)), position, episode)

    def with_block(
        self, keys: list[jax.Array], values: list[jax.Array], position: jax.Array, episode: jax.Array, read: jax.Array
    ) -> KVCache:
        """Return the cache after a block of Q steps, for which there must be room.

        Args:
            keys: Keys of every layer ``[B, H, Q, D]``.
            values: Values of every layer ``[B, H, Q, D]``.
            position: int32 ``[B, Q]``.
            episode: int32 ``[B, Q]``.
            read: Any array that depends on all reads of the cache, see `once_read`.
        """
        start = once_read(self.next_slot, read)

        def write(layers: tuple[Slots, ...], new: list[jax.Array]) -> tuple[Slots, ...]:
            return tuple(kv_formats.write(slots, x, start) for slots, x in zip(layers, new, strict=True))

        return advance(self.replace(keys=write(self.keys, keys), values=write(self.values, values)), position, episode)

    def prefix(self, capacity: int) -> KVCache:
        """Return a copy of the first ``capacity`` steps."""
        return self._slots(0, self.slots_of(capacity))

    def last_steps(self, steps: int) -> KVCache:
        """Return the last ``steps`` steps, with the counters of the whole cache."""
        return self._slots(self.slots_of(self.filled - steps), self.slots_of(steps))

    def _slots(self, start: jax.Array | int, size: int) -> KVCache:
        """Return the slots ``start … start + size − 1`` with unchanged counters."""
        keys, values = jax.tree.map(
            lambda slots: kv_formats.tile(slots, start, size),
            (self.keys, self.values),
            is_leaf=lambda x: isinstance(x, Slots),
        )
        episodes = lax.dynamic_slice_in_dim(self.episodes, start, size, axis=1)
        return self.replace(keys=keys, values=values, episodes=episodes)

    def append(self, added: KVCache) -> KVCache:
        """Return this cache followed by the `last_steps` of its continuation, with the counters of ``added``."""

        def write(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(old, new, self.slots_of(self.filled), axis)

        keys, values = jax.tree.map(
            lambda old, new: write(old, new, 2), (self.keys, self.values), (added.keys, added.values)
        )
        return added.replace(keys=keys, values=values, episodes=write(self.episodes, added.episodes, 1))

    def grown(self, capacity: int) -> KVCache:
        """Return a copy with room for ``capacity`` steps, at least as many as now."""
        more = self.slots_of(capacity) - self.slots

        def pad(x: jax.Array, axis: int, value: int) -> jax.Array:
            return jnp.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)], constant_values=value)

        keys, values = jax.tree.map(lambda x: pad(x, 2, 0), (self.keys, self.values))
        return self.replace(keys=keys, values=values, episodes=pad(self.episodes, 1, -1))

    def as_of(self, earlier: KVCache) -> KVCache:
        """Return this cache with the counters of ``earlier``. Keys and values written since then are not read."""
        return self.replace(length=earlier.length, position=earlier.position, episode=earlier.episode)

    def rewound(self, first: jax.Array, length: jax.Array | int) -> KVCache:
        """Return this cache as it was when it held fewer steps.

        Args:
            first: bool ``[B, S]``, whether the step of a slot is the first of its episode.
            length: int32 ``[]``, number of steps to keep.

        Returns:
            The cache with the counters of that time.
        """
        slot = jnp.arange(self.capacity)
        start = jnp.where(first & (slot < length), slot, 0).max(1)
        last = jnp.maximum(length - 1, 0)  # with length 0, slot 0: it belongs to the first episode
        return self.replace(
            length=jnp.full_like(self.length, length),
            position=jnp.where(length > 0, last - start, -1).astype(jnp.int32),
            episode=self.episode_of(last),
        )

    def episode_of(self, step: jax.Array) -> jax.Array:
        """Return the index of the episode of a filled step, int32 ``[]``: int32 ``[B]``."""
        return lax.dynamic_index_in_dim(self.episodes, step, 1, keepdims=False)


def empty_cache(
    batch: int, capacity: int, *, layers: int, heads: int, head_width: int, first_episode: int, kv_format: KVFormat
) -> KVCache:
    """Return an empty cache.

    Args:
        batch: B, number of environments.
        capacity: S, number of slots.
        layers: Number of layers.
        heads: H, number of heads.
        head_width: D, numbers per head.
        first_episode: Index of the first episode.
        kv_format: Format of keys and values.

    Returns:
        The cache.
    """

    def empty() -> tuple[Slots, ...]:
        return tuple(kv_formats.empty(batch, heads, capacity, head_width, kv_format) for _ in range(layers))

    return KVCache(
        keys=empty(),
        values=empty(),
        episodes=jnp.full((batch, capacity), -1, jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
        position=jnp.full((batch,), -1, jnp.int32),
        episode=jnp.full((batch,), first_episode, jnp.int32),
    )


def index_steps(cache: KVCache, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the position in the episode and the index of the episode of the next Q steps.

    The first step of a trial starts the first episode, whether or not it is marked.

    Args:
        cache: The steps before.
        first: bool ``[B, Q]``, whether a step is the first of its episode.

    Returns:
        Positions and episodes, int32 ``[B, Q]`` each.
    """
    step = jnp.arange(first.shape[1])
    last_first = lax.cummax(jnp.where(first, step, -1), axis=1)
    position = jnp.where(last_first >= 0, step - last_first, cache.position[:, None] + 1 + step)
    starts_trial = (cache.length[:, None] == 0) & (step == 0)
    episode = cache.episode[:, None] + jnp.cumsum(first & ~starts_trial, axis=1)
    return position.astype(jnp.int32), episode.astype(jnp.int32)


def advance(cache: KVCache, position: jax.Array, episode: jax.Array) -> KVCache:
    """Add Q steps to episodes and counters. ``position`` and ``episode`` are int32 ``[B, Q]``."""
    episodes = lax.dynamic_update_slice_in_dim(cache.episodes, episode, cache.next_slot, axis=1)
    return counted(cache.replace(episodes=episodes), position, episode)


def counted(cache: KVCache, position: jax.Array, episode: jax.Array) -> KVCache:
    """Add Q steps to the counters only."""
    return cache.replace(
        length=cache.length + position.shape[1],
        position=position[:, -1],
        episode=episode[:, -1],
    )


def once_read(start: jax.Array, x: jax.Array) -> jax.Array:
    """Return ``start`` with a data dependency on ``x``, which was computed from the cache.

    XLA writes in place if the write waits for all reads. Without the dependency it orders the write before them and
    copies the whole cache. Optimization barriers do not change that.

    Args:
        start: int32 ``[]``, the slot to write to.
        x: Any array that depends on all reads of the cache.

    Returns:
        ``start``.
    """
    bits = lax.bitcast_convert_type(jnp.abs(x.ravel()[0].astype(jnp.float32)), jnp.int32)
    return start + jnp.minimum(bits, 0)  # the sign bit is clear, so this adds 0


def in_kv_format(cache: KVCache, kv_format: KVFormat) -> KVCache:
    """Return a copy whose keys and values are stored in another format."""

    def convert(x: Slots | jax.Array) -> Slots | jax.Array:
        return kv_formats.encode(x.decoded(jnp.dtype(jnp.float32)), kv_format) if isinstance(x, Slots) else x

    return jax.tree.map(convert, cache, is_leaf=lambda x: isinstance(x, Slots))
