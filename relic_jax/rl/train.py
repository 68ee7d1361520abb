"""The host loop over jitted chunks: progress, checkpoints, resuming, stopping. No numbers are computed here."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relic_jax import checkpoint, prng, settings
from relic_jax.bridge.pool import PoolError
from relic_jax.config import ConfigError, TrainConfig, validate
from relic_jax.environment.base import Environment
from relic_jax.evaluation import check_evaluated
from relic_jax.files import storage_errors
from relic_jax.horizon import warn_if_cut
from relic_jax.interop import encoders
from relic_jax.loading import start_params
from relic_jax.locks import run_lock
from relic_jax.models.encoders import image_mask
from relic_jax.progress import Clock, duration
from relic_jax.rl.finite import SOURCES
from relic_jax.rl.host import HostSegments
from relic_jax.rl.memory_budget import check_memory, check_sizes
from relic_jax.rl.parallel import configure_devices, initial_state, parallel, state_shardings
from relic_jax.rl.state import Setup, TrainState, init_state, make_setup
from relic_jax.rl.update import segment_step, trial_step
from relic_jax.spaces import spaces_of, spaces_to_json
from relic_jax.stopping import stop_signals
from relic_jax.tracking import Record, Tracker


class NonFiniteError(RuntimeError):
    """A NaN or infinity appeared. The message names the step, the first_nonfinite and the last good checkpoint."""


@dataclasses.dataclass
class Result:
    """How a run ended. state: the last one. finished: False where it was interrupted. seconds: of training, over all
    resumptions. exit_code: for a process that a signal stopped, else 0.
    """

    state: TrainState
    finished: bool
    seconds: float
    exit_code: int = 0


@dataclasses.dataclass
class Progress:
    """Counters that survive a resumption. env_steps: taken so far. seconds: spent training."""

    env_steps: int = 0
    seconds: float = 0.0


@settings.with_standard
def prepare(config: TrainConfig, env: Environment, *, resume: bool = False) -> Setup:
    """Validates a config against its environment, the devices and their memory, and binds them.

    resume: weights to start from are in the run's checkpoint, their file is not asked for. Raises ConfigError before
    anything is compiled; of simulators, one is started for a moment.
    """
    images = any(image_mask(env.observation_spec))
    validate(config, horizon=env.horizon, images=images)
    config = configure_devices(config)
    check_sizes(config, images)
    check_evaluated(config.policy, config.eval, env, "test")
    env.check_start(config.trial.environments)
    setup = make_setup(config, env)
    encoders.check(setup.policy, weights=not resume)
    if config.start_from is not None and not resume:
        start_params(config.start_from, jax.eval_shape(setup.policy.init, jax.random.key(0)))
    check_memory(setup)
    return setup


Chunk = Callable[[TrainState], tuple[TrainState, Any]]


def compile_chunk(setup: Setup) -> Chunk:
    """The jitted chunk: traced once for the whole run, its state donated."""
    return parallel(setup, trial_step if setup.config.chunk == "trial" else segment_step)


@contextmanager
def chunks(setup: Setup) -> Iterator[Chunk]:
    """What takes a state to the next one, with the workers that it needs: a segment at a time where there are any."""
    if setup.trials.env.on_host:
        with HostSegments(setup) as segments:
            yield segments
    else:
        yield compile_chunk(setup)


@settings.with_standard
def train(
    setup: Setup,
    folder: Path,
    make_tracker: Callable[[int], Tracker],
    *,
    resume: bool,
    stop: threading.Event | None = None,
) -> Result:
    """Trains to the end, or until SIGINT or SIGTERM (in the main thread) or `stop`, which save and return.

    folder: the run folder; checkpoints go to `folder/checkpoints`. make_tracker: called with the environment steps that
    were taken before. resume: go on from the newest checkpoint (from the start, where there is none yet).
    Raises NonFiniteError, PoolError where simulators failed too often (after a checkpoint), LockedError where another
    process works on the folder, and StorageError where nothing can be written any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hint = f"what was saved before is whole, go on with: relic-jax train --resume {folder}"
    checkpoints = folder / "checkpoints"
    with run_lock(folder), storage_errors(hint), prng.using(prng_of(checkpoints) if resume else prng.current()):
        return _train(setup, folder, make_tracker, resume, stop)


def _train(
    setup: Setup,
    folder: Path,
    make_tracker: Callable[[int], Tracker],
    resume: bool,
    stop: threading.Event | None,
) -> Result:
    checkpoints = folder / "checkpoints"
    state, progress = restore(setup, checkpoints) if resume else (initial_state(setup), Progress())
    tracker, total = make_tracker(progress.env_steps), total_env_steps(setup.config)
    saved_at, clock = time.monotonic(), Clock(progress.seconds, total, window=_window(setup.config))
    begin = getattr(tracker, "begin", None)  # a user's own tracker need not have it
    try:
        if begin is not None and progress.env_steps < total:
            begin(_first_work(setup))
        with stop_signals(stop) as stopping, chunks(setup) as chunk:
            while progress.env_steps < total and not stopping.is_set():
                try:
                    state, metrics = chunk(state)
                except PoolError as error:
                    save(setup, checkpoints, state, progress)
                    raise PoolError(f"{error}; saved, go on with: relic-jax train --resume {folder}") from None
                done = list(records(setup.config, progress.env_steps, jax.device_get(metrics)))
                reading = clock.read(int(done[-1]["env_steps"]))
                progress.seconds = reading["seconds"]
                for record in done:
                    check_finite(setup, record, checkpoints)
                    progress.env_steps = int(record["env_steps"])
                    warn_if_cut(setup.trials.env.name, setup.trials.env.horizon, record.get("cut_episodes"))
                    tracker.log(record, reading)
                if time.monotonic() - saved_at > 60 * setup.config.checkpoint_minutes:
                    save(setup, checkpoints, state, progress)
                    saved_at = time.monotonic()
            save(setup, checkpoints, state, progress)
            finished = progress.env_steps >= total and not stopping.is_set()
    finally:
        tracker.close()
    return Result(state, finished, progress.seconds, stopping.exit_code)


def _window(config: TrainConfig) -> int:
    """Environment steps that the speed is averaged over at least: two trials, whose later segments are slower."""
    return 2 * config.trial.environments * config.trial.steps


def _first_work(setup: Setup) -> str:
    """What happens before the first update is done, for a person who waits."""
    config, policy = setup.config, setup.config.policy
    of = policy.transformer if policy.memory == "transformer" else policy.recurrent
    what = "trial" if config.chunk == "trial" else "update"
    text = f"compiling the first {what} ({policy.memory}, {of.layers} layers of width {of.width}"
    text += f", {config.trial.environments} environments, {config.trial.steps:,} steps of context)"
    return f"starting workers and {text}" if setup.trials.env.on_host else text


def total_env_steps(config: TrainConfig) -> int:
    """Environment steps of the whole run: whole trials."""
    return config.trials * config.trial.environments * config.trial.steps


@settings.with_standard
def save(setup: Setup, checkpoints: Path, state: TrainState, progress: Progress) -> None:
    """Writes a checkpoint named after the environment steps taken."""
    if progress.env_steps not in checkpoint.complete_steps(checkpoints):
        spaces = spaces_to_json(spaces_of(setup.trials.env))
        checkpoint.save(checkpoints, progress.env_steps, state, setup.config, dataclasses.asdict(progress), spaces)


@settings.with_standard
def restore(setup: Setup, checkpoints: Path) -> tuple[TrainState, Progress]:
    """The newest checkpoint's state and counters; fresh ones where there is none yet."""
    steps = checkpoint.complete_steps(checkpoints)
    if not steps:
        return initial_state(setup), Progress()
    path = checkpoints / str(steps[-1])
    checkpoint.verify(path)
    _, counters = checkpoint.load_meta(path)
    with prng.using(checkpoint.load_prng(path)):
        abstract = jax.eval_shape(lambda: init_state(setup))
        state = checkpoint.load_state(path, abstract, state_shardings(setup.config, abstract))
    return state, Progress(**counters)


def prng_of(checkpoints: Path) -> dict[str, Any]:
    """What makes the random numbers of a run: as in its newest checkpoint, JAX's settings where there is none yet."""
    steps = checkpoint.complete_steps(checkpoints)
    if not steps:
        return prng.current()
    path = checkpoints / str(steps[-1])
    checkpoint.load_meta(path)
    return checkpoint.load_prng(path)


def records(config: TrainConfig, env_steps: int, metrics: dict[str, np.ndarray]) -> Iterator[Record]:
    """Splits a chunk's metrics (leading axis [U] or none) into one record per update."""
    stacked = {name: np.atleast_1d(value) for name, value in metrics.items()}
    for index in range(len(stacked["loss"])):
        env_steps += config.trial.environments * config.trial.segment
        values = {name: float(value[index]) for name, value in stacked.items()}
        episodes, total, successes = (values.pop(name) for name in ("episodes", "return_sum", "success_sum"))
        others = {name: values.pop(name) for name in list(values) if name.startswith("episode/")}
        record: Record = {"env_steps": env_steps, "episodes": episodes}
        if episodes:
            record |= {"return": total / episodes, "success": successes / episodes}
            record |= {name: value / episodes for name, value in others.items()}
        yield record | values


def check_finite(setup: Setup, record: Record, checkpoints: Path) -> None:
    """Raises NonFiniteError where a record counts non-finite numbers; takes the counts out of it otherwise."""
    counts = {source: record.pop(f"nonfinite/{source}") for source in SOURCES}
    environment, step, task = (int(record.pop(f"nonfinite/{name}")) for name in ("environment", "step", "task"))
    first_nonfinite = next((source for source in SOURCES if counts[source]), None)
    if first_nonfinite is None:
        return
    steps = checkpoint.complete_steps(checkpoints)
    good = f"{checkpoints / str(steps[-1])}" if steps else "none yet"
    where = ""
    if environment >= 0:
        where = f"; {setup.trials.env.name}, environment {environment}, step {step} of its trial"
        where += f", training task {task}{task_text(setup.tasks, task)}" if task >= 0 else ""
    what, count = ("no legal action", "steps") if first_nonfinite == "legal" else ("not finite", "numbers")
    name = "" if first_nonfinite == "legal" else f": {first_nonfinite}"
    raise NonFiniteError(
        f"{what} at environment step {int(record['env_steps'])}{name} "
        f"({int(counts[first_nonfinite])} {count}{where}); last good checkpoint: {good}"
    )


def task_text(tasks: Any, index: int) -> str:
    """What a task is, in brackets, where that is one number such as a seed; else nothing."""
    leaves = jax.tree.leaves(tasks)
    return f" ({leaves[0][index]})" if len(leaves) == 1 and np.ndim(leaves[0]) == 1 else ""


__all__ = ["ConfigError", "NonFiniteError", "Result", "compile_chunk", "duration", "prepare", "train"]
