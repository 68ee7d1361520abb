"""Random numbers for environments on several devices that do not depend on the number of devices.

Every device draws the numbers of all environments from the same key and keeps those of its environments. The numbers
equal those on a single device. This costs little compared with the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
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


WHOLE = Shard()
"""All environments."""
