"""Data parallelism: environments are split over devices, parameters are replicated, and gradients are averaged.

Acting needs no communication, and an optimizer step needs one all-reduce. With `context_devices`, groups of devices
share the environments, and the devices of a group split the context of the same environments (`models.sharded`). On
CPU, XLA runs a program mostly on one core, so the devices are virtual devices, one per core.

The devices can belong to several processes (`relic_jax.processes`).
"""

from __future__ import annotations

import collections
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
from relic_jax.models.sharded import as_part, as_whole
from relic_jax.rl.state import AXIS, CONTEXT_AXIS, Setup, TrainState
from relic_jax.types import PyTree

MAX_CPU_DEVICES = 1024
"""Largest number of virtual CPU devices that a config can request. Each one takes threads and memory."""


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forced_devices() -> int | None:
    """Return the number of CPU devices set by JAX_NUM_CPU_DEVICES or XLA_FLAGS, or None if neither sets it."""
    config: Any = jax.config
    if config.jax_num_cpu_devices > 0:
        return int(config.jax_num_cpu_devices)
    found = re.findall(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(found[-1]) if found else None


def offer_cores(at_least: int = 1) -> None:
    """Create one CPU device per core, or as many as JAX's settings request.

    Call this before any device is used. Importing some environment suites already uses one.

    Args:
        at_least: smallest number of devices, up to `MAX_CPU_DEVICES`.
    """
    with contextlib.suppress(RuntimeError):  # JAX already has its devices
        jax.config.update("jax_num_cpu_devices", max(forced_devices() or cores(), min(at_least, MAX_CPU_DEVICES)))


def configure_devices(config: TrainConfig) -> TrainConfig:
    """Return the config with `devices` set.

    If `devices` is None, it becomes the largest number of available devices that fits the config. JAX's own setting is
    changed only if `devices` is more than 1. The command line calls `offer_cores` first, to use all CPU cores. Several
    processes contribute the same number of devices each.

    Raises:
        ConfigError: if `devices` is more than the number of available devices, or the processes cannot share it.
    """
    if (config.devices or 1) > 1:
        offer_cores(config.devices or 1)
    devices, processes = jax.devices(), jax.process_count()
    available = processes * min(collections.Counter(device.process_index for device in devices).values())
    if config.devices is not None:
        if config.devices > available:
            raise ConfigError(f"devices is {config.devices}; allowed: at most {available} ({jax.default_backend()})")
        if config.devices % processes:
            raise ConfigError(f"devices is {config.devices}; allowed: a multiple of the {processes} processes")
        return config
    fitting = [count for count in range(processes, available + 1, processes) if devices_fit(config, count)]
    if not fitting and processes == 1:
        raise ConfigError(f"context_devices is {config.context_devices}; allowed: at most {available} devices")
    if not fitting:
        rows = config.trial.environments // config.ppo.minibatches
        allowed = f"a divisor of trial.environments / ppo.minibatches ({rows}) or of ppo.accumulate "
        raise ConfigError(f"num-processes is {processes}; allowed: {allowed}({config.ppo.accumulate})")
    return dataclasses.replace(config, devices=fitting[-1])


def data_mesh(config: TrainConfig) -> Mesh:
    """Return a mesh of the first `devices` devices along the data axis, and along the context axis if they share it.

    Each process has an equal, contiguous part.
    """
    each = (config.devices or 1) // jax.process_count()
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    devices = np.asarray([device for _, own in sorted(by_process.items()) for device in own[:each]])
    if config.context_devices == 1:
        return Mesh(devices, (AXIS,))
    return Mesh(devices.reshape(-1, config.context_devices), (AXIS, CONTEXT_AXIS))


def state_specs(state: TrainState, context_devices: int = 1) -> Any:
    """Return a TrainState of PartitionSpecs: arrays of the environments are split, everything else is replicated.

    Args:
        state: the state, or a tree of the same structure.
        context_devices: if more than 1, the context is also split along its steps.
    """

    def replicate(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda _: P(), tree)

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda _: P(AXIS), tree)

    curriculum = replicate(state.curriculum)
    if state.curriculum is not None:
        curriculum = curriculum.replace(running=split(state.curriculum.running))
    parts = {name: split(getattr(state, name)) for name in ("trial", "trajectory", "memory", "teacher")}
    if context_devices > 1:
        memory: Any = state.memory
        slots = jax.tree.map(lambda _: P(AXIS, None, CONTEXT_AXIS), {"keys": memory.keys, "values": memory.values})
        parts["memory"] = parts["memory"].replace(**slots, episodes=P(AXIS, CONTEXT_AXIS))
    return replicate(state).replace(**parts, curriculum=curriculum)


def state_shardings(config: TrainConfig, state: TrainState) -> Any:
    """Return a TrainState of shardings, for creating, restoring and donating the state."""
    return shardings_of(config, state_specs(state, config.context_devices))


def shardings_of(config: TrainConfig, specs: PyTree) -> Any:
    """Return shardings over the data axis for a pytree of PartitionSpecs."""
    mesh = data_mesh(config)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def parallel(setup: Setup, function: Callable[..., tuple[TrainState, Any]], *inputs: PyTree) -> Callable[..., Any]:
    """Return a jitted function that runs `function(setup, state, *inputs) -> (state, metrics)` on all devices.

    Inside the function, each device has its share of the environments, and its part of their context if several devices
    share it. The state is donated. Input and output layouts are equal, so the resulting state can be passed in again
    without a second compilation.

    Args:
        setup: the training setup.
        function: the function to run.
        *inputs: PartitionSpecs of the inputs after the state.
    """
    config = setup.config
    groups = (config.devices or 1) // config.context_devices
    local = dataclasses.replace(
        setup,
        policy=setup.device_policy,
        local_environments=config.trial.environments // groups,
        axis=AXIS if groups > 1 else None,
    )
    local = dataclasses.replace(local, trials=dataclasses.replace(setup.trials, shard=local.shard))
    abstract = setup.abstract_state
    specs, shardings = state_specs(abstract, config.context_devices), state_shardings(config, abstract)

    def on_device(state: TrainState, *arguments: PyTree) -> tuple[TrainState, Any]:
        state = state.replace(memory=as_part(state.memory, local.policy.shards))
        state, metrics = function(local, state, *arguments)
        return state.replace(memory=as_whole(state.memory)), metrics

    run = jax.shard_map(
        on_device,
        mesh=data_mesh(config),
        in_specs=(specs, *inputs),
        out_specs=(specs, P()),
        check_vma=False,  # loops inside carry both split and replicated values
    )
    in_shardings = (shardings, *shardings_of(config, inputs))
    return jax.jit(run, donate_argnums=0, in_shardings=in_shardings, out_shardings=(shardings, None))


def initial_state(setup: Setup) -> TrainState:
    """Return the state before the first step, sharded over the devices. Weights are loaded if the config names any."""
    shardings = state_shardings(setup.config, setup.abstract_state)
    state = jax.jit(setup.initializer, out_shardings=shardings, compiler_options=_quick_compilation())()
    return with_initial_weights(setup, state)


def _quick_compilation() -> dict[str, Any] | None:
    """Return compiler options for a program that runs once. On CPUs, it compiles in two thirds of the time.

    The results are the same bit for bit as at the default level 3; at level 0 they are not.
    """
    level = "xla_backend_optimization_level"
    if jax.default_backend() != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def with_initial_weights(setup: Setup, state: TrainState) -> TrainState:
    """Return the state with the weights that the config names for the start of a run."""
    params = state.params
    if setup.config.start_from is not None:
        params = jax.tree.map(encoders.placed_like, params, start_params(setup.config.start_from, params))
    return state.replace(params=encoders.load(setup.policy, params))
