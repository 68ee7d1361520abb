"""Speed of whole training trials, and the shares of acting, updates and refreshes in their time."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax.config import TrainConfig
from relic_jax.envs.registry import make
from relic_jax.experiments import presets
from relic_jax.experiments.benchmark.measure import Machine, Timing, program, timed
from relic_jax.rl import update
from relic_jax.rl.parallel import initial_state, parallel
from relic_jax.rl.rollout import collect
from relic_jax.rl.segment import segment_step, trial_step
from relic_jax.rl.state import Setup, TrainState
from relic_jax.rl.train import prepare
from relic_jax.rl.trial import continue_trial

ORIGINAL = 191
"""Environment steps per second of the original on two idle cores, each with 227 Gflop/s in float32 products: one trial
of 8 × 4096 steps with 16 updates takes 172 s."""


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield cases of the paper's Darkroom run with either context gradient, of ours, and of XLand-MiniGrid.

    XLand-MiniGrid, with ReLIC and with RL², is skipped if it is not installed.
    """
    del machine
    paper = presets.get("darkroom-relic-paper").config
    yield case("darkroom-relic-paper", paper, original=ORIGINAL)
    stopped = replace(paper, ppo=replace(paper.ppo, context_gradient="stopped"))
    yield case("darkroom-relic-paper/context_gradient=stopped", stopped, original=ORIGINAL)
    yield case("darkroom-dpt", presets.get("darkroom-dpt").config)
    if importlib.util.find_spec("xminigrid"):
        for name in ("xland-trivial", "xland-trivial-rl2"):
            yield case(name, presets.get(name).config)


def case(name: str, config: TrainConfig, original: float | None = None) -> dict[str, Any]:
    """Measure one trial after a warm-up trial, then its parts halfway through a trial, each compiled separately."""
    setup = prepare(config, make(config.env))
    trial = setup.config.trial
    state = initial_state(setup)
    whole = program(parallel(setup, trial_step), state)

    def one_trial() -> Any:
        nonlocal state
        state, metrics = whole(state)
        return metrics

    timing = timed(one_trial, repeats=1)
    steps = trial.environments * trial.steps
    result = {
        "name": f"train/{name}",
        "rate": steps / timing.wall,
        "unit": "environment steps/s",
        "seconds_per_trial": timing.wall,
        "devices": setup.config.devices,
        **whole.cost,
        "share": shares(setup),
    }
    return result | ({} if original is None else {"of_original": steps / timing.wall / original})


def shares(setup: Setup) -> dict[str, float]:
    """Return the shares of acting, update and refresh in the time of a segment halfway through a trial."""
    segment = setup.config.trial.updates // 2

    def acted(setup: Setup, state: TrainState) -> Any:
        collected = collect(setup, state.params, state.trial, state.memory, state.key)
        return state.replace(trial=collected.trial, memory=collected.memory), {"value": collected.last_value.mean()}

    def updated(setup: Setup, state: TrainState) -> Any:
        batch = update.make_batch(setup, state, state.memory, jnp.zeros(setup.local_environments))
        params, opt_state, metrics = update.update(setup, state, batch, jnp.asarray(False), state.key)
        return state.replace(params=params, opt_state=opt_state), setup.mean(metrics)

    def refreshed(setup: Setup, state: TrainState) -> Any:
        state = continue_trial(setup, state, state.key)
        return state.replace(segment=state.segment - 1), {"value": state.trajectory.value.mean()}

    times = {
        name: in_the_middle(setup, function, segment)
        for name, function in {
            "segment": segment_step,
            "act": acted,
            "update": updated,
            "refresh": refreshed,
        }.items()
    }
    whole = times.pop("segment").wall
    parts = {name: timing.wall / whole for name, timing in times.items()}
    return parts | {"rest": 1 - sum(parts.values())}


def in_the_middle(setup: Setup, function: Any, segment: int) -> Timing:
    """Return the time of one call on a state before segment `segment`."""
    run, states = parallel(setup, function), []

    def fresh() -> TrainState:
        state = initial_state(setup)
        length = jnp.full_like(state.memory.length, segment * setup.config.trial.segment)
        return state.replace(segment=jnp.full_like(state.segment, segment), memory=state.memory.replace(length=length))

    repeats = 3
    states = [jax.block_until_ready(fresh()) for _ in range(repeats + 1)]
    return timed(lambda: run(states.pop()), repeats=repeats)
