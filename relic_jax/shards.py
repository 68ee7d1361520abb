"""Random numbers for environments on several devices that do not depend on the number of devices.

Every device draws the numbers of all environments from the same key and keeps those of its environments. The numbers
equal those on a single device. This costs little compared with the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from relic_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Shard:
    """The environments of one device, a contiguous part of all environments.

    Attributes:
        devices: Number of devices that share the environments equally.
        axis: Name of the device axis. None if one device has all environments.
    """

    devices: int = 1
    axis: str | None = None

    def own(self, tree: PyTree, axis: int = 0) -> PyTree:
        """Return the part of this device.

        Args:
            tree: Arrays whose axis `axis` is over all environments.
            axis: The axis over environments.
        """
        if self.axis is None:
            return tree
        device = lax.axis_index(self.axis)

        def part(x: jax.Array) -> jax.Array:
            size = x.shape[axis] // self.devices
            return lax.dynamic_slice_in_dim(x, device * size, size, axis)

        return jax.tree.map(part, tree)

    def split(self, key: jax.Array, *shape: int) -> jax.Array:
        """Split a key that all devices share into different keys for the environments of this device.

        Args:
            key: Typed PRNG key [].
            *shape: Shape of the result. The last axis is over the environments of this device.
        """
        keys = jax.random.split(key, (*shape[:-1], shape[-1] * self.devices))
        return self.own(keys, len(shape) - 1)

    def draw(self, function: Callable[..., PyTree], *trees: PyTree) -> PyTree:
        """Return `function(*trees)`, which draws random numbers for each environment from a key that all devices share.

        Args:
            function: Maps arrays with a leading axis over all environments to such arrays. The places of the other
                devices are filled with copies of `trees`, and their results are dropped.
            *trees: Arrays with a leading axis over the environments of this device.
        """
        if self.axis is None:
            return function(*trees)
        copies = jax.tree.map(lambda x: jnp.tile(x, (self.devices, *(1,) * (x.ndim - 1))), trees)
        return self.own(function(*copies))


@struct.dataclass
class Places:
    """Any of the trials that several devices share, and rows without a trial. Draws random numbers as `Shard` does.

    Attributes:
        index: int32 [B]. The place of each row's trial; `total` in an empty row.
        total: Number of trials.
    """

    index: jax.Array | np.ndarray
    total: int = struct.field(pytree_node=False)

    def own(self, tree: PyTree, axis: int = 0) -> PyTree:
        """Return the rows of this device from arrays whose axis `axis` is over all trials."""
        index = jnp.minimum(self.index, self.total - 1)
        return jax.tree.map(lambda x: x[(slice(None),) * axis + (index,)], tree)

    def split(self, key: jax.Array, *shape: int) -> jax.Array:
        """Split a key [] that all devices share into keys of `shape`, whose last axis is over this device's rows."""
        return self.own(jax.random.split(key, (*shape[:-1], self.total)), len(shape) - 1)

    def draw(self, function: Callable[..., PyTree], *trees: PyTree) -> PyTree:
        """Return `function(*trees)`, which draws random numbers for each trial from a key that all devices share.

        Args:
            function: Maps arrays with a leading axis over all trials to such arrays. The other devices' trials are
                zeros, and their results are dropped.
            *trees: Arrays with a leading axis over this device's rows.
        """

        def among_all(x: jax.Array) -> jax.Array:
            return jnp.zeros((self.total, *x.shape[1:]), x.dtype).at[self.index].set(x, mode="drop")

        return self.own(function(*jax.tree.map(among_all, trees)))


WHOLE = Shard()
"""All environments."""
