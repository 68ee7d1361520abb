"""The memory of a transformer policy: every past step's keys and values, preallocated for the whole trial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.attention import Context
from relic_jax.models.kv_formats import KVFormat, Slots


class KVCache(struct.PyTreeNode):
    """Explicit, passed in and returned. One array per layer: stacking the layers or another axis order is 4–15× slower.

    keys, values: a tuple with the slots [B, H, S, D] of each layer; keys are rotated.
    episodes: int32 [B, S]; index of the episode that each slot belongs to.
    length: int32 [B]; filled slots, the same number for every environment.
    position: int32 [B]; index within its episode of the last step, −1 when empty.
    episode: int32 [B]; index of the running episode.
    """

    keys: tuple[Slots, ...]
    values: tuple[Slots, ...]
    episodes: jax.Array
    length: jax.Array
    position: jax.Array
    episode: jax.Array

    @property
    def filled(self) -> jax.Array:
        """int32 []: the number of filled slots, `length` of any environment."""
        return self.length[0]

    @property
    def capacity(self) -> int:
        """S, the number of slots."""
        return self.episodes.shape[1]

    @property
    def kv_format(self) -> KVFormat:
        """The format of the keys and values."""
        return self.keys[0].kv_format

    def context(self, layer: int) -> Context:
        """What attention in `layer` reads."""
        return Context(self.keys[layer], self.values[layer], self.episodes, self.filled)

    def prefix(self, capacity: int) -> KVCache:
        """A copy that holds only the first `capacity` slots."""
        return self._slots(0, capacity)

    def last_steps(self, steps: int) -> KVCache:
        """The last `steps` filled slots alone, with the counters of the whole."""
        return self._slots(self.filled - steps, steps)

    def _slots(self, start: jax.Array | int, size: int) -> KVCache:
        """Slots start … start+size, the counters as they are."""
        keys, values = jax.tree.map(
            lambda slots: kv_formats.tile(slots, start, size),
            (self.keys, self.values),
            is_leaf=lambda x: isinstance(x, Slots),
        )
        episodes = lax.dynamic_slice_in_dim(self.episodes, start, size, axis=1)
        return self.replace(keys=keys, values=values, episodes=episodes)

    def append(self, added: KVCache) -> KVCache:
        """This cache followed by what `last_steps` took from its own continuation, whose counters it takes over."""

        def write(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(old, new, self.filled, axis)

        keys, values = jax.tree.map(
            lambda old, new: write(old, new, 2), (self.keys, self.values), (added.keys, added.values)
        )
        return added.replace(keys=keys, values=values, episodes=write(self.episodes, added.episodes, 1))

    def grown(self, capacity: int) -> KVCache:
        """A copy with room for `capacity` slots, of which there may already be as many."""
        more = capacity - self.capacity

        def pad(x: jax.Array, axis: int, value: int) -> jax.Array:
            return jnp.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)], constant_values=value)

        keys, values = jax.tree.map(lambda x: pad(x, 2, 0), (self.keys, self.values))
        return self.replace(keys=keys, values=values, episodes=pad(self.episodes, 1, -1))

    def as_of(self, earlier: KVCache) -> KVCache:
        """This cache with the counters of `earlier`: keys and values written since lie behind `length`, unread."""
        return self.replace(length=earlier.length, position=earlier.position, episode=earlier.episode)

    def rewound(self, first: jax.Array, length: jax.Array | int) -> KVCache:
        """This cache as it was when it held `length` (int32 []) steps, one of those it holds at least.

        first: bool [B, S], which slots open an episode.
        """
        slot = jnp.arange(self.capacity)
        opened = jnp.where(first & (slot < length), slot, 0).max(1)
        last = jnp.maximum(length - 1, 0)  # the first step opens the first episode, so nothing changes before it
        return self.replace(
            length=jnp.full_like(self.length, length),
            position=jnp.where(length > 0, last - opened, -1).astype(jnp.int32),
            episode=lax.dynamic_index_in_dim(self.episodes, last, 1, keepdims=False),
        )


def empty_cache(
    batch: int, capacity: int, *, layers: int, heads: int, head_width: int, first_episode: int, form: KVFormat
) -> KVCache:
    """A cache of `capacity` slots with nothing in it. first_episode: index that the first episode will have."""

    def empty() -> tuple[Slots, ...]:
        return tuple(kv_formats.empty(batch, heads, capacity, head_width, form) for _ in range(layers))

    return KVCache(
        keys=empty(),
        values=empty(),
        episodes=jnp.full((batch, capacity), -1, jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
        position=jnp.full((batch,), -1, jnp.int32),
        episode=jnp.full((batch,), first_episode, jnp.int32),
    )


def index_steps(cache: KVCache, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Position within the episode and index of the episode for the next Q steps.

    first: bool [B, Q]. Returns two int32 [B, Q]. The very first step of a trial opens the first episode whether or not
    it is flagged.
    """
    step = jnp.arange(first.shape[1])
    last_first = lax.cummax(jnp.where(first, step, -1), axis=1)
    position = jnp.where(last_first >= 0, step - last_first, cache.position[:, None] + 1 + step)
    opens_trial = (cache.length[:, None] == 0) & (step == 0)
    episode = cache.episode[:, None] + jnp.cumsum(first & ~opens_trial, axis=1)
    return position.astype(jnp.int32), episode.astype(jnp.int32)


def advance(cache: KVCache, position: jax.Array, episode: jax.Array) -> KVCache:
    """Books Q steps (int32 [B, Q] each) into the counters; keys and values are written by the layers."""
    return cache.replace(
        episodes=lax.dynamic_update_slice_in_dim(cache.episodes, episode, cache.filled, axis=1),
        length=cache.length + position.shape[1],
        position=position[:, -1],
        episode=episode[:, -1],
    )


def once_read(start: jax.Array, x: jax.Array) -> jax.Array:
    """`start` (int32 []), known only after x, which came of reading the cache.

    A write that waits for all reads can be done in place. Where it merely could, XLA orders it before them, and copies
    the whole cache to do so; optimisation barriers do not change that.
    """
    bits = lax.bitcast_convert_type(jnp.abs(x.ravel()[0].astype(jnp.float32)), jnp.int32)
    return start + jnp.minimum(bits, 0)  # the sign bit is clear: this is 0


def in_kv_format(cache: KVCache, form: KVFormat) -> KVCache:
    """A copy whose keys and values are stored in another format."""

    def convert(layers: tuple[Slots, ...]) -> tuple[Slots, ...]:
        return tuple(kv_formats.encode(slots.decoded(jnp.dtype(jnp.float32)), form) for slots in layers)

    return cache.replace(keys=convert(cache.keys), values=convert(cache.values))
