"""The memory of a transformer policy: every past step's keys and values, preallocated for the whole trial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.models.attention import Context


class KVCache(struct.PyTreeNode):
    """Explicit, passed in and returned. One array per layer: stacking the layers or another axis order is 4–15× slower.

    keys, values: a tuple with one [B, H, S, D] per layer; keys are rotated.
    episodes: int32 [B, S]; index of the episode that each slot belongs to.
    length: int32 []; filled slots, the same for every environment.
    position: int32 [B]; index within its episode of the last step, −1 when empty.
    episode: int32 [B]; index of the running episode.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    episodes: jax.Array
    length: jax.Array
    position: jax.Array
    episode: jax.Array

    @property
    def capacity(self) -> int:
        """S, the number of slots."""
        return self.episodes.shape[1]

    def context(self, layer: int) -> Context:
        """What attention in `layer` reads."""
        return Context(self.keys[layer], self.values[layer], self.episodes, self.length)


def empty_cache(
    batch: int, capacity: int, *, layers: int, heads: int, head_width: int, first_episode: int, dtype: jnp.dtype
) -> KVCache:
    """A cache of `capacity` slots with nothing in it. first_episode: index that the first episode will have."""

    def zeros() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((batch, heads, capacity, head_width), dtype) for _ in range(layers))

    return KVCache(
        keys=zeros(),
        values=zeros(),
        episodes=jnp.full((batch, capacity), -1, jnp.int32),
        length=jnp.zeros((), jnp.int32),
        position=jnp.full((batch,), -1, jnp.int32),
        episode=jnp.full((batch,), first_episode, jnp.int32),
    )


def write(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """Writes [B, H, Q, D] into slots start … start+Q of [B, H, S, D]."""
    return lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), start, axis=2)


def index_steps(cache: KVCache, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Position within the episode and index of the episode for the next Q steps.

    first: bool [B, Q]. Returns two int32 [B, Q]. The very first step of a trial opens the first episode whether or not
    it is flagged.
    """
    step = jnp.arange(first.shape[1])
    last_first = lax.cummax(jnp.where(first, step, -1), axis=1)
    position = jnp.where(last_first >= 0, step - last_first, cache.position[:, None] + 1 + step)
    opens_trial = (cache.length == 0) & (step == 0)
    episode = cache.episode[:, None] + jnp.cumsum(first & ~opens_trial, axis=1)
    return position.astype(jnp.int32), episode.astype(jnp.int32)


def advance(cache: KVCache, position: jax.Array, episode: jax.Array) -> KVCache:
    """Books Q steps (int32 [B, Q] each) into the counters; keys and values are written by the layers."""
    return cache.replace(
        episodes=lax.dynamic_update_slice_in_dim(cache.episodes, episode, cache.length, axis=1),
        length=cache.length + position.shape[1],
        position=position[:, -1],
        episode=episode[:, -1],
    )


def prefix(cache: KVCache, capacity: int) -> KVCache:
    """A copy that holds only the first `capacity` slots."""
    return cache.replace(
        keys=tuple(k[:, :, :capacity] for k in cache.keys),
        values=tuple(v[:, :, :capacity] for v in cache.values),
        episodes=cache.episodes[:, :capacity],
    )


def rows(cache: KVCache, index: jax.Array) -> KVCache:
    """The environments `index` (int32 [b]) of a cache."""
    taken = jax.tree.map(lambda x: x[index], cache.replace(length=jnp.zeros(cache.position.shape)))
    return taken.replace(length=cache.length)
