"""The parts of the check, the most important first."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from relic_jax.config import TransformerConfig
from relic_jax.experiments import presets
from relic_jax.experiments.benchmark import act, env, refresh, rollout, train, update
from relic_jax.experiments.benchmark.measure import Machine
from relic_jax.experiments.faults.small import small_config
from relic_jax.experiments.gpu_check import kernels, runs

TINY = TransformerConfig(layers=1, heads=2, width=32, mlp_width=32, max_positions=128)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        summary: One line that describes the part.
        seconds: Its time limit.
        cases: Called with the machine, whether to use tiny sizes, and the seconds of the part. Yields
            JSON-serializable dicts with a name.
    """

    summary: str
    seconds: float
    cases: Callable[[Machine, bool, float], Iterator[dict[str, Any]]]


def _acting(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    return iter([act.case(machine, TINY, batch=2, context=64)]) if quick else act.cases(machine)


def _updating(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    return iter([update.case(machine, TINY, batch=1, context=256)]) if quick else update.cases(machine)


def _refreshing(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    return iter([refresh.case(machine, TINY, batch=1, steps=256)]) if quick else refresh.cases(machine)


def _collecting(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    return iter([rollout.case(2)]) if quick else rollout.cases(machine)


def _training(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    return iter([train.case("tiny", small_config())]) if quick else itertools.islice(train.cases(machine), 3)


def _rendering(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Render rooms at 25×25 and houses at 64×64, and compute the symbols of houses."""
    peak = env.vector_rate() if not quick else 1.0
    rooms = env.Case("miniworld-oneroom", {"width": 25, "height": 25}, 2 if quick else 4096)
    yield env.measure(rooms, peak, {}, 0.1 if quick else 1.0, 1)
    if quick:
        return
    yield env.measure(env.Case("house-objnav-small", {}, 1024), peak, {}, 1.0, 2)
    yield env.symbols("house-objnav-small", 1.0, 2, batch=1024)


def _xland(machine: Machine, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Train RL² and ReLIC on XLand-MiniGrid."""
    if not importlib.util.find_spec("xminigrid"):
        yield {"name": "xland", "skipped": "the extra xland is not installed"}
        return
    for name in ("xland-trivial-rl2", "xland-trivial"):
        config = presets.get(name).config
        trial = replace(config.trial, environments=8, steps=16, updates=1) if quick else config.trial
        yield train.case(name, replace(config, devices=1, trial=trial))


def _of_runs(cases: Callable[[bool, float], Iterator[dict[str, Any]]]) -> Any:
    """Return a part's function from one that does not need the machine."""
    return lambda machine, quick, seconds: cases(quick, seconds)


PARTS: dict[str, Part] = {
    "kernels": Part(
        "attention kernels against the definition, contexts of 65,535 … 131,072 steps",
        100,
        lambda machine, quick, seconds: kernels.correctness(quick),
    ),
    "act": Part("actions per second (benchmark act)", 60, _acting),
    "update": Part("the gradient of a segment (benchmark update)", 35, _updating),
    "darkroom": Part("darkroom-dpt-gpu, trained to its targets", 95, _of_runs(runs.darkroom)),
    "refresh": Part("recomputing the context (benchmark refresh)", 25, _refreshing),
    "64k": Part("one trial of darkroom-64k in bfloat16", 95, _of_runs(runs.long_trial)),
    "env": Part("rendering at 25×25 and 64×64, symbols (benchmark env)", 45, _rendering),
    "house": Part("the first minute of house-objnav-small-gpu", 75, _of_runs(runs.house)),
    "decoders": Part(
        "the decode kernel beside its alternatives",
        30,
        lambda machine, quick, seconds: kernels.decoders(quick),
    ),
    "train": Part("whole training trials (benchmark train)", 70, _training),
    "xland": Part("RL² and ReLIC on XLand-MiniGrid", 60, _xland),
    "sweep": Part("16 seeds of darkroom-dpt-gpu in one program", 60, _of_runs(runs.sweep)),
    "rollout": Part("policy and environment (benchmark rollout)", 30, _collecting),
    "symbols": Part("the first minute of house-symbols-small", 75, _of_runs(runs.symbols)),
}
