"""Which environments form the minibatches of an epoch, independent of the number of devices.

An optimizer step uses `ppo.accumulate` minibatches. Each device must have the same number of environments in each step,
because shapes are static and the contexts stay on their devices. With one optimizer step per epoch, every order
satisfies this. With S steps, the environments form blocks of S neighbors, and each step takes one random environment of
each block. Each device then has the same number of environments in a step, for every number of devices that fits
(`config.devices_fit`).

A device can compute gradients in groups that are not the minibatches of the step. The minibatches then only determine
the count by which the loss is divided if steps can be lost (`masked.step_counts`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from relic_jax.config import TrainConfig
from relic_jax.rl.state import Setup


class Order(NamedTuple):
    """The environments of an epoch, on one device.

    The device computes gradients in groups of environments. With one device, these are the minibatches.

    Attributes:
        rows: int32 [steps, groups, b], environments of this device.
        minibatch: int32 [steps, groups, b], index in its optimizer step of the minibatch of each environment. None if
          the groups are the minibatches, or equal parts of them.
    """

    rows: jax.Array
    minibatch: jax.Array | None = None


def minibatch_shape(config: TrainConfig, environments: int) -> tuple[int, int, int]:
    """Return (optimizer steps per epoch, groups per step, environments per group) on one device.

    If `devices_share_minibatches`, a device has an equal part of every minibatch. Otherwise, it has the environments of
    a whole number of minibatches of every step.

    Args:
        config: the run's config.
        environments: environments on one device.
    """
    ppo, devices = config.ppo, config.trial.environments // environments
    steps, rows = ppo.minibatches // ppo.accumulate, config.trial.environments // ppo.minibatches
    if devices_share_minibatches(config, environments):
        return steps, ppo.accumulate, rows // devices
    return steps, ppo.accumulate // devices, rows


def devices_share_minibatches(config: TrainConfig, environments: int) -> bool:
    """Whether each minibatch can be split over the devices, with `environments` environments on each device."""
    devices, rows = config.trial.environments // environments, config.trial.environments // config.ppo.minibatches
    return rows % devices == 0


def epoch_order(setup: Setup, key: jax.Array) -> Order:
    """Draw the order of the environments in an epoch.

    Args:
        setup: the training setup.
        key: typed PRNG key [], the same on all devices.
    """
    environments, shape = setup.local_environments, minibatch_shape(setup.config, setup.local_environments)
    if setup.device_keys:
        return Order(jax.random.permutation(key, environments).reshape(shape))
    order = step_environments(key, setup.config.trial.environments, shape[0])
    if setup.axis is None:
        return Order(order.reshape(shape))
    return _own(
        order, lax.axis_index(setup.axis), shape, setup.config.trial.environments // setup.config.ppo.minibatches
    )


def step_environments(key: jax.Array, environments: int, steps: int) -> jax.Array:
    """Draw the environments of each optimizer step, in a random order: int32 [steps, environments / steps].

    Each step has one environment of each block of `steps` neighbors.

    Args:
        key: typed PRNG key [].
        environments: number of all environments.
        steps: optimizer steps per epoch, a divisor of `environments`.
    """
    if steps == 1:
        return jax.random.permutation(key, environments)[None]
    step_key, order_key = jax.random.split(key)
    blocks = jnp.arange(environments).reshape(-1, steps)
    blocks = jax.random.permutation(step_key, blocks, axis=1, independent=True)
    return jax.random.permutation(order_key, blocks).T


def _own(order: jax.Array, device: jax.Array, shape: tuple[int, int, int], size: int) -> Order:
    """Return the part of a device.

    Args:
        order: int32 [steps, E], the environments of each step. E / D of them are on each of the D devices.
        device: int32 [], index of the device.
        shape: (steps, groups, b) on the device.
        size: environments of a minibatch.
    """
    steps, groups, rows = shape
    environments = steps * groups * rows
    is_own = order // environments == device
    places = jnp.argsort(~is_own, axis=1, stable=True)[:, : groups * rows]
    own = jnp.take_along_axis(order, places, axis=1) % environments
    if rows == environments:  # `Batch.rows` keeps the order of a group of all environments
        places = jnp.take_along_axis(places, jnp.argsort(own, axis=1), axis=1)
        own = jnp.sort(own, axis=1)
    return Order(own.reshape(shape), (places // size).reshape(shape))
