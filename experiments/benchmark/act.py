"""Speed of acting: one policy step on a filled context. The floor is reading every key and value once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import TransformerConfig
from relic_jax.experiments.benchmark.measure import Machine, program, timed
from relic_jax.experiments.benchmark.models import MODEL, act_bytes, benchmark_setup, state_with_context
from relic_jax.models.memory import Memory
from relic_jax.rl.state import Setup, step_input

STEPS = 32  # per call, so that the overhead of a call is negligible


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield one case per cache format, batch size and context length.

    On CPU: contexts of 1k to 8k steps in float32 and int8, with the paper's batch size of 20. On accelerators: bfloat16
    and int8, also with batch size 256 and with 64k steps, with the fused kernel and with XLA.
    """
    if machine.platform == "cpu":
        for model in (MODEL, replace(MODEL, cache="int8")):
            for context in (1024, 2048, 4096, 8192):
                yield case(machine, model, batch=20, context=context)
        return
    half = replace(MODEL, dtype="bfloat16")
    yield case(machine, half, batch=20, context=8192)
    yield case(machine, half, batch=256, context=8192)
    yield case(machine, half, batch=20, context=65_536)
    yield case(machine, replace(half, cache="int8"), batch=20, context=8192)
    for batch in (20, 256):
        yield case(machine, replace(half, decode="xla"), batch=batch, context=8192)


def case(machine: Machine, cfg: TransformerConfig, *, batch: int, context: int) -> dict[str, Any]:
    """Measure one case. `context` is the number of filled steps halfway through the measurement."""
    setup = benchmark_setup(batch, context + STEPS // 2, STEPS, cfg)
    state = state_with_context(setup, context - STEPS // 2)
    memory: Any = setup.policy.for_acting(state.memory)
    run = program(jax.jit(functools.partial(act_steps, setup), donate_argnums=1), state.params, memory)
    start = memory.length

    def call() -> jax.Array:
        nonlocal memory
        value, memory = run(state.params, memory.replace(length=jnp.copy(start)))
        return value

    timing = timed(call)
    seconds = timing.wall / STEPS
    needed = act_bytes(replace(cfg, cache=memory.kv_format), batch, context)
    return {
        "name": f"act/{cfg.cache_format}/batch{batch}/context{context}" + "/xla" * (cfg.decode == "xla"),
        "rate": batch / seconds,
        "unit": "actions/s",
        "milliseconds": 1e3 * seconds,
        "floor_fraction": needed / seconds / machine.copy_bandwidth,
        "floor": f"{needed / 1e6:.0f} MB per step at the measured copy bandwidth",
        **run.cost,
    }


def act_steps(setup: Setup, params: Any, memory: Memory) -> tuple[jax.Array, Memory]:
    """Act for STEPS steps on one observation."""
    inputs = step_input(state_with_context(setup, 0).trial)
    params = setup.policy.cast_weights(params)

    def step(memory: Memory, _: None) -> tuple[Memory, jax.Array]:
        output, memory = setup.policy.act(params, memory, inputs)
        return memory, output.value

    memory, values = jax.lax.scan(step, memory, length=STEPS)
    return values, memory
