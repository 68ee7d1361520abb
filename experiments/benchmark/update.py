"""Speed of learning: the gradient of one segment with a context from the cache. The floor is its arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import TransformerConfig
from relic_jax.experiments.benchmark.measure import Machine, Program, against_arithmetic, on_every_device, timed
from relic_jax.experiments.benchmark.models import MODEL, benchmark_setup, state_with_context, update_flops
from relic_jax.models.memory import Memory
from relic_jax.rl import update
from relic_jax.rl.state import Setup, TrainState
from relic_jax.types import Params

SEGMENT = 256


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield the cases of the platform.

    On CPU: contexts of 4k and 8k steps, with the compiled kernel and with XLA, and the temporary memory for a context
    of 64k steps, which is compiled and not run. On accelerators: 8k steps in bfloat16, with the platform's attention
    and with ours.
    """
    if machine.platform != "cpu":
        half = replace(MODEL, dtype="bfloat16")
        for model in (half, replace(half, attention="blocked")):
            yield case(machine, model, batch=4, context=8192)
        return
    for context in (4096, 8192):
        for model in (MODEL, replace(MODEL, attention="blocked")):
            yield case(machine, model, batch=4, context=context)
    yield {
        "name": "update/batch1/context65536",
        **compile_update(*arguments(MODEL, 1, 65536)).cost,
    }


def variant(cfg: TransformerConfig) -> str:
    """Return the suffix of a case's name: dtype and attention if they are not the defaults."""
    return "" if cfg == MODEL else f"/{cfg.dtype}" + ("" if cfg.attention == "auto" else f"/{cfg.attention}")


def case(machine: Machine, cfg: TransformerConfig, *, batch: int, context: int) -> dict[str, Any]:
    """Measure one case."""
    setup, state, before = arguments(cfg, batch, context)
    compiled = compile_update(setup, state, before)
    timing = timed(lambda: compiled(state, before))
    flops = update_flops(cfg, batch, SEGMENT, context)
    name, unit = f"update/batch{batch}/context{context}{variant(cfg)}", "steps learned from per second and epoch"
    return against_arithmetic(machine, name, unit, batch * SEGMENT, flops, timing, compiled)


def arguments(cfg: TransformerConfig, batch: int, context: int) -> tuple[Setup, TrainState, Memory]:
    """Return a setup, its state after acting, and the context before acting."""
    setup = benchmark_setup(batch, context + SEGMENT, SEGMENT, cfg)
    state = state_with_context(setup, context)
    before = state.memory.prefix(context)
    length = jnp.full_like(state.memory.length, context + SEGMENT)
    return setup, state.replace(memory=state.memory.replace(length=length)), before


def compile_update(setup: Setup, state: TrainState, before: Memory) -> Program:
    """Compile one epoch over all environments in one minibatch, on every device."""
    return on_every_device(functools.partial(run, setup), state, before)


def run(setup: Setup, state: TrainState, before: Memory) -> Params:
    """Return the parameters after the update of a segment."""
    batch = update.make_batch(setup, state.replace(memory=before), before, jnp.zeros(setup.local_environments))
    return update.update(setup, state, batch, jnp.asarray(False), jax.random.key(0))[0]
