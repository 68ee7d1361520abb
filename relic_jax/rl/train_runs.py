"""The training loop of several runs with the same shapes: a batch of runs in one compiled program (`population`).

Every run keeps its own folder, metrics and checkpoints, as in `train`, and can be resumed alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from relic_jax import checkpoint, prng, settings
from relic_jax.evaluation.concurrent import concurrent_evaluations, in_threads
from relic_jax.evaluation.during import Evaluations
from relic_jax.files import storage_errors
from relic_jax.horizon import warn_if_cut
from relic_jax.locks import run_lock
from relic_jax.progress import Clock
from relic_jax.rl.population import Population
from relic_jax.rl.state import Setup, TrainState
from relic_jax.rl.train import (
    NonFiniteError,
    Progress,
    as_started,
    check_finite,
    prng_of,
    records,
    restore,
    save,
    total_env_steps,
    with_pretraining,
)
from relic_jax.stopping import Stop
from relic_jax.tracking import Tracker


@dataclass(eq=False)
class Run:
    """One run of a batch.

    Attributes:
        setup: its setup, on one device.
        folder: its folder, which exists.
        progress: its counters.
        error: the error that ended it, or None.
    """

    setup: Setup
    folder: Path
    progress: Progress = field(default_factory=Progress)
    error: NonFiniteError | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def saved_steps(self) -> int:
        """Environment steps of its newest checkpoint, or 0."""
        return max(checkpoint.complete_steps(self.checkpoints), default=0)

    @property
    def is_trained(self) -> bool:
        """Whether its newest checkpoint is that of its end."""
        return self.saved_steps >= total_env_steps(self.setup.config)


def batches(runs: Sequence[Run], slots: int) -> list[list[Run]]:
    """Divide runs into batches of at most `slots`, the furthest first.

    The runs of a batch have the same number of environment steps and the same `Setup.device_keys`. The numbers of steps
    differ only if the process was killed between two checkpoints.
    """
    by_steps: dict[tuple[int, bool], list[Run]] = {}
    for run in runs:
        run.setup = as_started(run.setup, run.checkpoints)
        by_steps.setdefault((run.saved_steps, run.setup.device_keys), []).append(run)
    return [
        group[start : start + slots]
        for _, group in sorted(by_steps.items(), reverse=True)
        for start in range(0, len(group), slots)
    ]


@settings.with_standard
def train_runs(population: Population, runs: Sequence[Run], make_tracker: Callable[[Run], Tracker], stop: Stop) -> bool:
    """Train a batch of runs to their end, or until `stop` is set. Both save a checkpoint of each run.

    A run with a checkpoint continues from it. A run in which a number is not finite ends with an error; the others
    continue.

    Args:
        population: the program.
        runs: at most `population.slots` runs that are equally far.
        make_tracker: called with each run before the start, when its `progress` is known.
        stop: ends training after the current chunk.

    Returns:
        Whether the runs are finished.

    Raises:
        LockedError: if another process uses a folder.
        StorageError: if files cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run_lock(run.folder))
        stack.enter_context(storage_errors("earlier checkpoints are complete"))
        stack.enter_context(prng.using(prng_of(runs[0].checkpoints)))
        return _train(population, runs, make_tracker, stop)


def _train(population: Population, runs: Sequence[Run], make_tracker: Callable[[Run], Tracker], stop: Stop) -> bool:
    starts = [_start(population, run) for run in runs]
    first, config = runs[0], runs[0].setup.config
    total, window = total_env_steps(config), 2 * config.trial.environments * config.trial.steps
    clock, saved_at = Clock(first.progress.seconds, total, window=window), time.monotonic()
    with contextlib.ExitStack() as stack:
        trackers = [stack.enter_context(contextlib.closing(make_tracker(run))) for run in runs]
        evaluations = [
            stack.enter_context(contextlib.closing(Evaluations(run.setup, run.folder, run.progress.env_steps)))
            for run in runs
        ]
        pretrained = [_pretrained(*each, stop) for each in zip(runs, starts, trackers, strict=True)]
        ready = [state for state in pretrained if state is not None]
        if len(ready) < len(runs):
            return False
        states, values = population.stack(ready), population.values([run.setup for run in runs])
        _evaluate(population, runs, evaluations, states, stop)
        while _env_steps(runs) < total and not stop.is_set() and any(run.error is None for run in runs):
            states, metrics = population.step(states, values, first.setup.device_keys)
            _log(runs, trackers, jax.device_get(metrics), clock)
            _evaluate(population, runs, evaluations, states, stop)
            if time.monotonic() - saved_at > 60 * config.checkpoint_minutes:
                _save(population, runs, states)
                saved_at = time.monotonic()
        _save(population, runs, states)
    return not any(run.error is None and run.progress.env_steps < total for run in runs)


def _start(population: Population, run: Run) -> TrainState:
    """Return the state of a run at its newest checkpoint or at its start, and set its counters."""
    if not checkpoint.complete_steps(run.checkpoints):
        return population.initial_state(run.setup)
    state, run.progress = restore(run.setup, run.checkpoints)
    return state


def _pretrained(run: Run, state: TrainState, tracker: Tracker, stop: Stop) -> TrainState | None:
    """Return the state of a run after its pretraining, or None if that was stopped. An error ends the run only."""
    try:
        return with_pretraining(run.setup, run.checkpoints, state, run.progress, tracker, stop)
    except NonFiniteError as error:
        run.error = error
        return state


def _env_steps(runs: Sequence[Run]) -> int:
    return max(run.progress.env_steps for run in runs)


def _log(runs: Sequence[Run], trackers: Sequence[Tracker], metrics: dict[str, Any], clock: Clock) -> None:
    """Log the records of a chunk to the tracker of each run."""
    reading: dict[str, float] | None = None
    for slot, (run, tracker) in enumerate(zip(runs, trackers, strict=True)):
        if run.error is not None:
            continue
        env, own = run.setup.trials.env, {name: value[slot] for name, value in metrics.items()}
        done = list(records(run.setup.config, run.progress.env_steps, own))
        reading = reading or clock.read(int(done[-1]["env_steps"]))
        run.progress.seconds = reading["seconds"]
        try:
            for record in done:
                check_finite(run.setup, record, run.checkpoints)
                run.progress.env_steps = int(record["env_steps"])
                warn_if_cut(env.name, env.horizon, record.get("cut_episodes"))
                tracker.log(record, reading)
        except NonFiniteError as error:
            run.error = error


def _evaluate(
    population: Population, runs: Sequence[Run], evaluations: Sequence[Evaluations], states: TrainState, stop: Stop
) -> None:
    """Evaluate the runs that are due according to `eval.every`, one per device at the same time."""
    due = [
        (slot, run, evaluate)
        for slot, (run, evaluate) in enumerate(zip(runs, evaluations, strict=True))
        if run.error is None and evaluate.due(run.progress.env_steps)
    ]

    def evaluated(item: tuple[int, Run, Evaluations]) -> None:
        slot, run, evaluate = item
        evaluate(population.state_of(states.params, slot), run.progress.env_steps, stop)

    in_threads(evaluated, due, min((_concurrent(run.setup, population.devices) for _, run, _ in due), default=1))


def _concurrent(setup: Setup, devices: int) -> int:
    config = setup.config.eval.during_training
    return concurrent_evaluations(setup.policy.config, config, setup.trials.env, "test", devices)


def _save(population: Population, runs: Sequence[Run], states: TrainState) -> None:
    for slot, run in enumerate(runs):
        if run.error is None:
            save(run.setup, run.checkpoints, population.state_of(states, slot), run.progress)
