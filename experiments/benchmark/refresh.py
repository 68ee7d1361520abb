"""Recomputing keys, values and value predictions of a whole context after an update. The floor is its arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.measure import Machine, against_arithmetic, on_every_device, timed
from experiments.benchmark.models import MODEL, benchmark_setup, refresh_flops, state_with_context
from relic_jax.models.memory import Memory
from relic_jax.rl import context
from relic_jax.rl.state import Setup, TrainState

SEGMENT = 256


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """4k and 8k steps."""
    for steps in (4096, 8192):
        yield case(machine, batch=2, steps=steps)


def case(machine: Machine, *, batch: int, steps: int) -> dict[str, Any]:
    """One measurement."""
    setup = benchmark_setup(batch, steps, SEGMENT)
    state = state_with_context(setup, steps)
    compiled = on_every_device(functools.partial(run, setup), state)
    timing = timed(lambda: compiled(state), repeats=3)
    flops = refresh_flops(MODEL, batch, steps)
    name, unit = f"refresh/batch{batch}/context{steps}", "context steps/s"
    return against_arithmetic(machine, name, unit, batch * steps, flops, timing, compiled)


def run(setup: Setup, state: TrainState) -> tuple[Memory, jax.Array]:
    """All segments."""
    trial, steps = setup.config.trial, state.trajectory
    segments = jnp.asarray(trial.updates, jnp.int32)
    return context.refresh(
        setup.policy, state.params, state.memory, steps.inputs, steps.value, 0, segments, trial.segment
    )
