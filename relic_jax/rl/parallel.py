"""Data parallelism: the environments are split over devices, parameters are replicated, gradients are averaged.

Acting needs no communication, an optimiser step needs one all-reduce. On CPU, XLA runs one program mostly on one core,
so there the "devices" are virtual, one per core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from relic_jax.config import ConfigError, TrainConfig, devices_fit
from relic_jax.interop import encoders
from relic_jax.loading import start_params
from relic_jax.models.memory import Memory
from relic_jax.rl.state import AXIS, Setup, TrainState, init_state
from relic_jax.types import PyTree

MOST_OFFERED = 1024
"""CPU devices that are made where a config asks for more than there are cores: each takes threads and memory."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forced_devices() -> int | None:
    """How many CPU devices JAX_NUM_CPU_DEVICES or XLA_FLAGS ask for; None: neither does."""
    config: Any = jax.config
    if config.jax_num_cpu_devices > 0:
        return int(config.jax_num_cpu_devices)
    found = re.findall(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(found[-1]) if found else None


def offer_cores(at_least: int = 1) -> None:
    """Makes every CPU core a device, or as many devices as JAX's settings ask for.

    To be called before anything touches a device: importing some suites does.
    """
    with contextlib.suppress(RuntimeError):  # devices are in use already: what there is has to do
        jax.config.update("jax_num_cpu_devices", max(forced_devices() or cores(), min(at_least, MOST_OFFERED)))


def configure_devices(config: TrainConfig) -> TrainConfig:
    """Fills in `devices`. Raises ConfigError where more are asked for than there are.

    Where `devices` is None: as many as jax has and as fit. JAX's own setting is touched only where more than one is
    asked for; else the caller decides (the command line offers all CPU cores before, see `offer_cores`).
    """
    if (config.devices or 1) > 1:
        offer_cores(config.devices or 1)
    available = len(jax.devices())
    if config.devices is not None:
        if config.devices > available:
            raise ConfigError(f"devices is {config.devices}; allowed: at most {available} ({jax.default_backend()})")
        return config
    best = max(count for count in range(1, available + 1) if devices_fit(config, count))
    return dataclasses.replace(config, devices=best)


def data_mesh(config: TrainConfig) -> Mesh:
    """The first `devices` devices in a row along the data axis."""
    return Mesh(np.asarray(jax.devices()[: config.devices or 1]), (AXIS,))


def state_specs(state: TrainState) -> Any:
    """A TrainState of PartitionSpecs: what is split over the environments (leading axis), what is on every device."""

    def everywhere(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda _: P(), tree)

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda _: P(AXIS), tree)

    return everywhere(state).replace(
        trial=split(state.trial),
        trajectory=split(state.trajectory),
        memory=memory_specs(state.memory),
    )


def memory_specs(memory: Memory) -> Any:
    """A memory of PartitionSpecs: split over the environments, but for what they share."""
    specs: Any = jax.tree.map(lambda _: P(AXIS), memory)
    return specs.replace(length=P())


def state_shardings(config: TrainConfig, state: TrainState) -> Any:
    """A TrainState of shardings, for creating, loading and donating."""
    return shardings_of(config, state_specs(state))


def shardings_of(config: TrainConfig, specs: PyTree) -> Any:
    """Shardings over the data axis from PartitionSpecs."""
    mesh = data_mesh(config)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def parallel(setup: Setup, function: Callable[..., tuple[TrainState, Any]], *inputs: PyTree) -> Callable[..., Any]:
    """`function(setup, state, *inputs) -> (state, metrics)` as one jitted call over all devices, its state donated.

    inputs: PartitionSpecs of what else goes in. Inside, each device sees its share of the environments. Layouts are
    pinned, so that the state that comes out goes in again without a second compilation.
    """
    config = setup.config
    devices = config.devices or 1
    local = dataclasses.replace(
        setup, local_environments=config.trial.environments // devices, axis=AXIS if devices > 1 else None
    )
    abstract = jax.eval_shape(lambda: init_state(setup))
    specs, shardings = state_specs(abstract), state_shardings(config, abstract)
    run = jax.shard_map(
        lambda *arguments: function(local, *arguments),
        mesh=data_mesh(config),
        in_specs=(specs, *inputs),
        out_specs=(specs, P()),
        check_vma=False,  # loops inside carry both split and replicated values; what must be averaged is averaged
    )
    in_shardings = (shardings, *shardings_of(config, inputs))
    return jax.jit(run, donate_argnums=0, in_shardings=in_shardings, out_shardings=(shardings, None))


def initial_state(setup: Setup) -> TrainState:
    """The state before the first step, laid out over the devices, with the weights that the config starts from."""
    shardings = state_shardings(setup.config, jax.eval_shape(lambda: init_state(setup)))
    state = jax.jit(lambda: init_state(setup), out_shardings=shardings)()
    params = state.params
    if setup.config.start_from is not None:
        params = jax.tree.map(encoders.placed_like, params, start_params(setup.config.start_from, params))
    return state.replace(params=encoders.load(setup.policy, params))
