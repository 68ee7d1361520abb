"""Several runs in one compiled program: a run per device, or several per device under `vmap`.

The runs of a program have the same shapes. They differ in their seeds, in the scalars of PPO (`SCALARS`) and in
settings that the program does not read. Devices exchange nothing, so every run computes what it computes alone on one
device, up to rounding: the compiler can fuse the axis over runs into other loops, whose sums have another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from relic_jax.config import EvalConfig, PPOConfig, PretrainConfig, TrainConfig, WorkerConfig
from relic_jax.rl.parallel import with_initial_weights
from relic_jax.rl.segment import segment_step, trial_step
from relic_jax.rl.state import Metrics, Setup, TrainState, init_state
from relic_jax.types import PyTree

State = TypeVar("State")

AXIS = "runs"
"""Name of the device axis over which runs are split."""
SCALARS = (
    *("lr", "lr_final", "adam_eps", "max_grad_norm", "clip", "value_clip", "value_coef", "entropy_coef"),
    *("entropy_coef_final", "gamma", "gae_lambda", "reward_scale"),
)
"""Fields of `PPOConfig` that can differ between the runs of one program, which traces them."""


def common_config(config: TrainConfig) -> TrainConfig:
    """Return the config with defaults in place of everything that can differ between the runs of one program.

    Runs with equal results can share a program. A scalar that is None selects another program than a number does.
    """
    default = PPOConfig()
    numbers: dict[str, Any] = {
        name: getattr(default, name) if getattr(default, name) is not None else 0.0
        for name in SCALARS
        if getattr(config.ppo, name) is not None
    }
    return dataclasses.replace(
        config,
        seed=0,
        devices=1,
        checkpoint_minutes=TrainConfig().checkpoint_minutes,
        start_from=None,
        ppo=dataclasses.replace(config.ppo, **numbers),
        pretrain=PretrainConfig(),
        eval=EvalConfig(),
        host=WorkerConfig(),
    )


def differing_scalars(configs: Sequence[TrainConfig]) -> tuple[str, ...]:
    """Return the names of the `SCALARS` that are not equal in all configs."""
    return tuple(name for name in SCALARS if len({getattr(config.ppo, name) for config in configs}) > 1)


def runs_per_device(runs: int, devices: int) -> int:
    """Return how many runs a device trains at a time.

    On CPU it is one, and a device trains its share of the runs one after the other with the same program. `vmap` gains
    nothing there: one core trains `darkroom-dpt` in 5.9 s per run and trial alone and in 6.3 s with four runs under
    `vmap`, which also doubles the time of compilation. With the tiny network of `darkroom-smoke` eight runs under
    `vmap` are 10% faster. An accelerator, which one small run does not fill, trains all of its share at once.
    """
    return 1 if jax.default_backend() == "cpu" else -(-runs // devices)


class Population:
    """The compiled program of runs with the same shapes.

    A program has S = D·V slots: D devices with V runs each. Its state is a `TrainState` whose leaves have a leading
    axis S. Unlike constants, traced scalars are not folded by the compiler, so only those that differ are traced.

    Args:
        setups: The setups of all runs. They have one `common_config`.
        devices: D.
        per_device: V. None: `runs_per_device`.
    """

    def __init__(self, setups: Sequence[Setup], devices: int, per_device: int | None = None) -> None:
        first, configs = setups[0], [setup.config for setup in setups]
        self.scalars = differing_scalars(configs)
        self.devices = min(devices, len(setups))
        self.per_device = per_device or runs_per_device(len(setups), self.devices)
        self._sharding = NamedSharding(Mesh(np.asarray(jax.devices()[: self.devices]), (AXIS,)), P(AXIS))
        self._init = jax.jit(lambda seed: init_state(_with_seed(first, seed)))
        self._stack = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))  # not leaf by leaf
        self._at = jax.jit(lambda state, index: jax.tree.map(lambda x: x[index], state))  # one program for all slots
        self._steps = {
            device_keys: self._compiled(dataclasses.replace(first, device_keys=device_keys))
            for device_keys in (False, True)
        }

    @property
    def slots(self) -> int:
        """S, the number of runs that are trained at the same time."""
        return self.devices * self.per_device

    def initial_state(self, setup: Setup) -> TrainState:
        """Return the state of one run before its first step, on the first device."""
        return with_initial_weights(setup, self._init(np.uint32(setup.config.seed)))

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """Return the states of S or fewer runs as the state of the program. The last run fills empty slots."""
        padded = [*states, *[states[-1]] * (self.slots - len(states))]
        return jax.device_put(self._stack(*padded), self._sharding)

    def state_of(self, states: State, slot: int) -> State:
        """Return the state of the run in a slot, or a part of it, on the first device."""
        device, index = divmod(slot, self.per_device)
        own = jax.tree.map(lambda x: x.addressable_shards[device].data, states)
        return jax.device_put(self._at(own, index), jax.devices()[0])

    def values(self, setups: Sequence[Setup]) -> dict[str, jax.Array]:
        """Return the traced scalars of S or fewer runs, float32 [S] by name."""
        padded = [*setups, *[setups[-1]] * (self.slots - len(setups))]
        return {
            name: jax.device_put(np.asarray([getattr(s.config.ppo, name) for s in padded], np.float32), self._sharding)
            for name in self.scalars
        }

    def step(
        self, states: TrainState, values: dict[str, jax.Array], device_keys: bool = False
    ) -> tuple[TrainState, Metrics]:
        """Train all slots for one chunk.

        Args:
            states: The state of the program, which is donated.
            values: The traced scalars, see `values`.
            device_keys: `Setup.device_keys` of all runs.

        Returns:
            The next state, and metrics with a leading axis S.
        """
        return self._steps[device_keys](states, values)

    def _compiled(self, setup: Setup) -> Callable[..., tuple[TrainState, Metrics]]:
        function = trial_step if setup.config.chunk == "trial" else segment_step

        def one(state: TrainState, values: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
            return function(_with_scalars(setup, values), state)

        def on_device(states: TrainState, values: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
            if self.per_device > 1:
                return vmapped(one)(states, values)
            alone = jax.tree.map(lambda x: x[0], (states, values))
            return jax.tree.map(lambda x: x[None], one(*alone))

        run = jax.shard_map(on_device, mesh=self._sharding.mesh, in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)
        return jax.jit(run, donate_argnums=0, in_shardings=self._sharding, out_shardings=(self._sharding, None))


def vmapped(
    one: Callable[[TrainState, PyTree], tuple[TrainState, Metrics]],
) -> Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]:
    """Return the function for V runs. All are in the same segment of their trials.

    The position in the trial has no axis over runs. Otherwise the branches that depend on it, such as the sizes of the
    buffers for acting, would all be computed for every segment.
    """

    def shared(state: TrainState, length: Any, segment: Any, others: Any) -> TrainState:
        axes = jax.tree.map(lambda _: others, state)
        return axes.replace(segment=segment, memory=axes.memory.replace(length=length))

    def run(states: TrainState, values: PyTree) -> tuple[TrainState, Metrics]:
        count = states.segment.shape[0]
        axes = shared(states, None, None, 0)
        scalar = states.replace(segment=states.segment[0], memory=states.memory.replace(length=states.memory.length[0]))
        state, metrics = jax.vmap(one, in_axes=(axes, 0), out_axes=(axes, 0))(scalar, values)
        length = jnp.broadcast_to(state.memory.length, (count, *state.memory.length.shape))
        segment = jnp.broadcast_to(state.segment, (count,))
        return state.replace(segment=segment, memory=state.memory.replace(length=length)), metrics

    return run


def _with_seed(setup: Setup, seed: Any) -> Setup:
    return dataclasses.replace(setup, config=dataclasses.replace(setup.config, seed=seed))


def _with_scalars(setup: Setup, values: dict[str, jax.Array]) -> Setup:
    config: Any = setup.config
    return dataclasses.replace(setup, config=dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, **values)))
