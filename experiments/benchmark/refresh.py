"""Speed of a refresh of a whole context after an update. The floor is its arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import TransformerConfig
from relic_jax.experiments.benchmark.measure import Machine, against_arithmetic, on_every_device, timed
from relic_jax.experiments.benchmark.models import MODEL, benchmark_setup, refresh_flops, state_with_context
from relic_jax.models.memory import Memory
from relic_jax.rl import context
from relic_jax.rl.state import Setup, TrainState

SEGMENT = 256


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield cases of 4k and 8k steps. Accelerators use bfloat16 and 20 environments."""
    cfg, batch = (MODEL, 2) if machine.platform == "cpu" else (replace(MODEL, dtype="bfloat16"), 20)
    for steps in (4096, 8192):
        yield case(machine, cfg, batch=batch, steps=steps)


def case(machine: Machine, cfg: TransformerConfig, *, batch: int, steps: int) -> dict[str, Any]:
    """Measure one case."""
    setup = benchmark_setup(batch, steps, SEGMENT, cfg)
    state = state_with_context(setup, steps)
    compiled = on_every_device(functools.partial(run, setup), state)
    timing = timed(lambda: compiled(state), repeats=3)
    flops = refresh_flops(cfg, batch, steps)
    name, unit = f"refresh/batch{batch}/context{steps}" + "/bfloat16" * (cfg.dtype == "bfloat16"), "context steps/s"
    return against_arithmetic(machine, name, unit, batch * steps, flops, timing, compiled)


def run(setup: Setup, state: TrainState) -> tuple[Memory, jax.Array]:
    """Refresh all segments."""
    trial, steps = setup.config.trial, state.trajectory
    segments = jnp.asarray(trial.updates, jnp.int32)
    return context.refresh(
        setup.policy, state.params, state.memory, steps.inputs, steps.value, 0, segments, trial.segment
    )
