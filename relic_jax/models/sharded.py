"""A cache whose steps are split over devices, for contexts that do not fit one device.

Device c of C holds the steps c, c + C, c + 2C, … in its slots 0, 1, 2, … Every device then has an equal part of every
context, whatever its length, and this part is an ordinary context: filled slots first, episodes in ascending order
(striped attention, Brandon et al. 2023, arXiv 2311.09431). Attention merges the parts (`attention.tiled`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from relic_jax.models import kv_formats
from relic_jax.models.attention import Context
from relic_jax.models.cache import KVCache, Steps, counted, once_read
from relic_jax.models.kv_formats import Slots
from relic_jax.models.memory import Memory
from relic_jax.types import Span

T = TypeVar("T", bound=Memory)


class ContextShards(NamedTuple):
    """The devices that share a context.

    Attributes:
        axis: Name of the device axis.
        devices: C, number of devices along it.
    """

    axis: str
    devices: int


class ShardedCache(KVCache):
    """The part of a `KVCache` that one device holds. It exists only inside a function that runs on every device.

    Keys, values and `episodes` have S / C slots for S steps. The counters are those of the whole cache and equal on all
    devices of the axis. A block of several steps, and the number of steps before it, must be multiples of C.

    Attributes:
        shards: The devices. Static.
    """

    shards: ContextShards = struct.field(pytree_node=False)

    @property
    def axis(self) -> str:
        """Name of the device axis."""
        return self.shards.axis

    @property
    def capacity(self) -> int:
        """Number of steps for which all devices together have room."""
        return self.slots * self.shards.devices

    @property
    def stores_next(self) -> jax.Array:
        """Whether the next step is stored on this device, bool ``[]``."""
        return self.filled % self.shards.devices == lax.axis_index(self.axis)

    def slots_of(self, steps: Steps) -> Steps:
        """Return the number of slots of a number of steps, which is a multiple of C or the index of the next step."""
        return steps // self.shards.devices

    def filled_slots(self, steps: jax.Array) -> jax.Array:
        """Return the number of slots that this device fills if the cache holds ``steps`` steps."""
        devices = self.shards.devices
        return (steps + devices - 1 - lax.axis_index(self.axis)) // devices

    def context(self, layer: int) -> Context:
        """Return this device's part of the context that a block of steps attends to in ``layer``."""
        return super().context(layer)._replace(length=self.filled_slots(self.filled))

    def step_context(self, layer: int, episode: jax.Array) -> Context:
        """Return this device's part of the context of a single step. See `KVCache.step_context`."""
        length = jnp.minimum(self.filled_slots(self.filled + 1), self.slots)
        return Context(self.keys[layer], self.values[layer], self._episodes_with(episode), length)

    def with_step(self, keys: list[Slots], values: list[Slots], position: jax.Array, episode: jax.Array) -> KVCache:
        """Return the cache after a single step. See `KVCache.with_step`."""
        episodes = self._episodes_with(episode)
        return counted(self.replace(keys=tuple(keys), values=tuple(values), episodes=episodes), position, episode)

    def _episodes_with(self, episode: jax.Array) -> jax.Array:
        """Return the episodes of the slots. The device that stores the next step adds its episode, int32 ``[B, 1]``."""
        old = lax.dynamic_slice_in_dim(self.episodes, self.next_slot, 1, axis=1)
        new = jnp.where(self.stores_next, episode, old)
        return lax.dynamic_update_slice_in_dim(self.episodes, new, self.next_slot, axis=1)

    def with_block(
        self, keys: list[jax.Array], values: list[jax.Array], position: jax.Array, episode: jax.Array, read: jax.Array
    ) -> KVCache:
        """Return the cache after a block of steps, or of one step. See `KVCache.with_block`."""
        start, single = once_read(self.next_slot, read), position.shape[1] == 1
        if single:
            episodes = self._episodes_with(episode)
        else:
            episodes = lax.dynamic_update_slice_in_dim(self.episodes, self.own(episode, 1), start, axis=1)

        def write(layers: tuple[Slots, ...], new: list[jax.Array]) -> tuple[Slots, ...]:
            if single:
                return tuple(
                    kv_formats.write(slots, x, start, self.stores_next) for slots, x in zip(layers, new, strict=True)
                )
            return tuple(kv_formats.write(slots, self.own(x, 2), start) for slots, x in zip(layers, new, strict=True))

        keys_values = {"keys": write(self.keys, keys), "values": write(self.values, values)}
        return counted(self.replace(episodes=episodes, **keys_values), position, episode)

    def own(self, x: jax.Array, axis: int) -> jax.Array:
        """Return this device's part of a block of steps along an axis, Q → Q / C."""
        shape = (*x.shape[:axis], x.shape[axis] // self.shards.devices, self.shards.devices, *x.shape[axis + 1 :])
        return lax.dynamic_index_in_dim(x.reshape(shape), lax.axis_index(self.axis), axis + 1, keepdims=False)

    def episode_of(self, step: jax.Array) -> jax.Array:
        """Return the index of the episode of a filled step, from the device that holds it: int32 ``[B]``."""
        own = super().episode_of(step // self.shards.devices)
        is_own = step % self.shards.devices == lax.axis_index(self.axis)
        return lax.psum(jnp.where(is_own, own, 0), self.axis)


def own_steps(memory: Memory, steps: Span) -> Span | None:
    """Return the part of the steps that this device computes in a pass over a whole trial, or None if it computes all.

    Such a pass starts from a memory of capacity 0, so its gradient reaches every step. Device c of C computes the c-th
    of C equal parts.
    """
    if not isinstance(memory, ShardedCache) or memory.slots:
        return None
    size = steps.size // memory.shards.devices
    return Span(steps.start + lax.axis_index(memory.axis) * size, size)


def as_part(memory: T, shards: ContextShards | None) -> T | KVCache:
    """Return a memory whose arrays are the part of one device as such, if there are ``shards``."""
    if shards is None:
        return memory
    assert isinstance(memory, KVCache)
    return ShardedCache(**vars(memory), shards=shards)


def as_whole(memory: T) -> T | KVCache:
    """Return the same arrays as a `KVCache`, the inverse of `as_part`. Outside, the devices' parts form one array."""
    if not isinstance(memory, ShardedCache):
        return memory
    return KVCache(**{name: x for name, x in vars(memory).items() if name != "shards"})
