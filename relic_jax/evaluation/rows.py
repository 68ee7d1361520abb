"""The trials of an evaluation as rows of arrays on one or several devices, equally many rows on each.

Every device draws the random numbers of all trials and keeps those of its rows (`relic_jax.shards.Places`), so they do
not depend on the number of devices. Results are therefore equal except for rounding: XLA adds up the products of a
matrix in an order that depends on the number of rows. In rare cases a sampled action differs, and with it the rest of
its trial.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from relic_jax.rl.state import AXIS
from relic_jax.shards import Places
from relic_jax.types import Params, PyTree


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which trial is in which row.

    Attributes:
        trials: int [devices, b]. The number of each row's trial, ascending; -1 in an empty row.
    """

    trials: np.ndarray

    @classmethod
    def of(cls, count: int, devices: int) -> Rows:
        """Divide trials 0 … `count` − 1 over at most `devices` devices."""
        each = -(-count // devices)
        numbers = np.arange(-(-count // each) * each)
        return cls(np.where(numbers < count, numbers, -1).reshape(-1, each))

    @property
    def devices(self) -> int:
        """The number of devices."""
        return len(self.trials)

    @property
    def filled(self) -> np.ndarray:
        """Whether each row has a trial, bool [devices · b]."""
        return self.trials.ravel() >= 0

    @property
    def playing(self) -> np.ndarray:
        """The numbers of the trials, int [n], ascending."""
        return self.trials.ravel()[self.filled]

    def spread(self, tree: PyTree) -> PyTree:
        """Return the rows of all trials' arrays. Those of trial 0 stand in empty rows."""
        return tree if self.devices == 1 else jax.tree.map(lambda x: x[np.maximum(self.trials.ravel(), 0)], tree)

    def places(self) -> Places | None:
        """Return the places of all rows, on the host. None: one device has all trials."""
        if self.devices == 1:
            return None
        index = np.where(self.filled, np.cumsum(self.filled) - 1, self.filled.sum())
        return Places(index.astype(np.int32), int(self.filled.sum()))

    def keep(self, kept: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Drop trials. No row moves to another device, so some devices can have empty rows afterwards.

        Args:
            kept: bool [devices · b]. The rows whose trials stay.

        Returns:
            The remaining rows, and for each its former row on its device, int32 [devices · b'].
        """
        own = [np.flatnonzero(x) for x in (kept & self.filled).reshape(self.trials.shape)]
        each = max(map(len, own))
        trials, index = np.full((len(own), each), -1), np.zeros((len(own), each), np.int32)
        for device, rows in enumerate(own):
            trials[device, : len(rows)], index[device, : len(rows)] = self.trials[device, rows], rows
        return Rows(trials), index.ravel()


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of an evaluation are.

    Attributes:
        rows: Sharding of arrays whose first axis is over rows. None: JAX's default.
        copies: Sharding of arrays that every device needs.
    """

    rows: Sharding | None
    copies: Sharding | None

    @classmethod
    def of(cls, devices: int, params: Params) -> Placement:
        """Return the placement on the first `devices` devices of this process; for one, on that of the parameters.

        Without a fixed device, the second chunk of an evaluation would be compiled again: its inputs have one.
        """
        if devices > 1:
            return cls(*(NamedSharding(mesh(devices), spec) for spec in (P(AXIS), P())))
        found = {device for x in jax.tree.leaves(params) if isinstance(x, jax.Array) for device in x.devices()}
        where = SingleDeviceSharding(found.pop()) if len(found) == 1 else None
        return cls(where, where)


def mesh(devices: int) -> Mesh:
    """Return the first devices of this process as a mesh."""
    return Mesh(np.asarray(jax.local_devices()[:devices]), (AXIS,))


def on_devices(function: Callable[..., Any], devices: int, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """Return a function that runs on each device with its rows. `function` itself for one device.

    Args:
        function: The function.
        devices: Number of devices.
        inputs: PartitionSpecs of its arguments.
        outputs: PartitionSpecs of its results.
    """
    if devices == 1:
        return function
    return jax.shard_map(function, mesh=mesh(devices), in_specs=inputs, out_specs=outputs, check_vma=False)
