"""The training loop on the host: progress, checkpoints, resuming and stopping. The numerics are in the runners."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relic_jax import checkpoint, prng, processes, settings
from relic_jax.bridge.pool import PoolError
from relic_jax.config import ConfigError, TrainConfig, validate
from relic_jax.environment.base import Environment
from relic_jax.evaluation import check_evaluated
from relic_jax.evaluation.during import Evaluations
from relic_jax.files import storage_errors
from relic_jax.horizon import warn_if_cut
from relic_jax.interop import encoders
from relic_jax.loading import start_params
from relic_jax.locks import run_lock
from relic_jax.progress import Clock, duration
from relic_jax.rl.attention_kernels import report_changes, used_kernels
from relic_jax.rl.curriculum import check_curriculum
from relic_jax.rl.diagnostics import SOURCES, NonFiniteError
from relic_jax.rl.memory_budget import check_memory, check_sizes
from relic_jax.rl.parallel import configure_devices, data_mesh, initial_state, state_shardings
from relic_jax.rl.pretraining import check_pretraining, pretrained
from relic_jax.rl.runner import make_runner
from relic_jax.rl.state import Setup, TrainState, make_setup
from relic_jax.rl.teaching import check_teaching
from relic_jax.spaces import image_mask, spaces_of, spaces_to_json
from relic_jax.stopping import Stop, stop_signals
from relic_jax.tracking import Record, Tracker
from relic_jax.validation import require


@dataclasses.dataclass
class Result:
    """Result of a run.

    Attributes:
        state: the last state.
        finished: False if the run was interrupted.
        seconds: time spent training, including earlier parts of a resumed run.
        exit_code: exit code for a process that was stopped by a signal, otherwise 0.
        saved: whether there is a checkpoint. False if pretraining was interrupted, which starts again.
    """

    state: TrainState
    finished: bool
    seconds: float
    exit_code: int = 0
    saved: bool = True


@dataclasses.dataclass
class Progress:
    """Counters that are saved in checkpoints.

    Attributes:
        env_steps: environment steps so far.
        seconds: time spent training.
    """

    env_steps: int = 0
    seconds: float = 0.0


@settings.with_standard
def prepare(config: TrainConfig, env: Environment, *, resume: bool = False) -> Setup:
    """Validate a config against its environment, the devices and their memory, and return the setup of the run.

    Nothing is compiled. If the environment runs in worker processes, one worker is started briefly.

    Args:
        config: the run's config.
        env: its environment.
        resume: whether the run resumes from a checkpoint, so files with initial weights are not needed.

    Raises:
        ConfigError: if the config is invalid, or the run does not fit into memory.
    """
    images = any(image_mask(env.observation_spec))
    validate(config, horizon=env.horizon, images=images)
    config = configure_devices(config)
    check_sizes(config, images)
    check_evaluated(config.policy, config.eval, env, "test")
    if config.eval.every is not None:
        check_evaluated(config.policy, config.eval.during_training, env, "test")
    check_recall(config, env)
    check_pretraining(config, env)
    check_teaching(config, env)
    check_curriculum(config, env)
    check_context_devices(config, env)
    env.check_start(config.trial.environments // jax.process_count())
    setup = make_setup(config, env)
    encoders.check(setup.policy, weights=not resume)
    if config.start_from is not None and not resume:
        start_params(config.start_from, jax.eval_shape(setup.policy.init, jax.random.key(0)))
    check_memory(setup)
    return setup


def check_context_devices(config: TrainConfig, env: Environment) -> None:
    """Raise ConfigError if the context is split over devices in several processes, or with worker processes."""
    require(
        jax.process_count() == 1 or config.context_devices == 1,
        "context_devices",
        config.context_devices,
        "1 with several processes",
    )
    allowed = f"1 in {config.env.name!r} (the policy acts on one device if the environment runs in worker processes)"
    require(config.context_devices == 1 or not env.on_host, "context_devices", config.context_devices, allowed)


def check_recall(config: TrainConfig, env: Environment) -> None:
    """Raise ConfigError if a recall loss needs labels or a head that are not there."""
    ppo, classes = config.ppo, env.recall_classes
    if not ppo.recall_coef and not ppo.recall_coef_final:
        return
    field = "ppo.recall_coef" if ppo.recall_coef else "ppo.recall_coef_final"
    allowed = f"0 in {config.env.name!r}, which {env.without_labels}"
    require(bool(classes), field, ppo.recall_coef or ppo.recall_coef_final, allowed)
    allowed = f"{classes} with {field} in {config.env.name!r}"
    require(config.policy.recall == classes, "policy.recall", config.policy.recall, allowed)


@settings.with_standard
def train(
    setup: Setup,
    folder: Path,
    make_tracker: Callable[[int], Tracker],
    *,
    resume: bool,
    stop: threading.Event | None = None,
) -> Result:
    """Train to the end of the run, or until it is stopped.

    SIGINT and SIGTERM (in the main thread) and `stop` save a checkpoint and return. If several processes train the run,
    all of them call this function, and one that is stopped stops all.

    Args:
        setup: the setup of the run, from `prepare`.
        folder: the run folder. Checkpoints are written to `folder/checkpoints`.
        make_tracker: called with the number of environment steps before the start.
        resume: whether to continue from the newest checkpoint. Without one, training starts from the beginning.
        stop: stops training when it is set.

    Raises:
        NonFiniteError: if a number is not finite.
        PoolError: if worker processes failed too often. A checkpoint is saved first.
        LockedError: if another process uses the folder.
        StorageError: if files cannot be written.
    """
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
    hint = f"earlier checkpoints are complete, resume with: relic-jax train --resume {folder}"
    checkpoints = folder / "checkpoints"
    lock = run_lock(folder) if processes.is_first() else contextlib.nullcontext()
    with lock, storage_errors(hint), prng.using(prng_of(checkpoints) if resume else prng.current()):
        setup = as_started(setup, checkpoints) if resume else setup
        # From here on, signals are recorded: an exception could be lost in JAX's callback for garbage collection.
        with stop_signals(stop) as stopping:
            return _train(setup, folder, make_tracker, resume, stopping)


def _train(
    setup: Setup,
    folder: Path,
    make_tracker: Callable[[int], Tracker],
    resume: bool,
    stopping: Stop,
) -> Result:
    checkpoints = folder / "checkpoints"
    _announce(checkpoints)
    processes.connect_devices(data_mesh(setup.config))
    state, progress = restore(setup, checkpoints) if resume else (initial_state(setup), Progress())
    tracker, total = make_tracker(progress.env_steps), total_env_steps(setup.config)
    saved_at, clock = time.monotonic(), Clock(progress.seconds, total, window=_window(setup.config))
    evaluations = Evaluations(setup, folder, progress.env_steps)

    def evaluate(stopping: Stop) -> None:
        evaluation = evaluations(state.params, progress.env_steps, stopping)
        show = getattr(tracker, "evaluated", None)  # optional too
        if evaluation is not None and show is not None:
            show(evaluation)

    try:
        with make_runner(setup) as run_chunk:
            if (start := with_pretraining(setup, checkpoints, state, progress, tracker, stopping)) is None:
                return Result(state, False, progress.seconds, stopping.exit_code, saved=False)
            state = start
            evaluate(stopping)
            if progress.env_steps < total:
                _begin(tracker, _startup_message(setup))
            while progress.env_steps < total and not processes.any_of(stopping.is_set()):
                try:
                    state, metrics = run_chunk(state)
                except PoolError as error:
                    if processes.are_several():  # the others have no error, so they do not save
                        raise
                    save(setup, checkpoints, state, progress)
                    raise PoolError(f"{error}; saved, resume with: relic-jax train --resume {folder}") from None
                done = list(records(setup.config, progress.env_steps, jax.device_get(metrics)))
                reading = clock.read(int(done[-1]["env_steps"]))
                progress.seconds = reading["seconds"]
                for record in done:
                    check_finite(setup, record, checkpoints)
                    progress.env_steps = int(record["env_steps"])
                    warn_if_cut(setup.trials.env.name, setup.trials.env.horizon, record.get("cut_episodes"))
                    tracker.log(record, reading)
                evaluate(stopping)
                if processes.as_first(time.monotonic() - saved_at > 60 * setup.config.checkpoint_minutes):
                    save(setup, checkpoints, state, progress)
                    saved_at = time.monotonic()
            save(setup, checkpoints, state, progress)
            finished = progress.env_steps >= total and not processes.any_of(stopping.is_set())
    finally:
        evaluations.close()
        tracker.close()
    return Result(state, finished, progress.seconds, stopping.exit_code)


def with_pretraining(
    setup: Setup, checkpoints: Path, state: TrainState, progress: Progress, tracker: Tracker, stop: Stop
) -> TrainState | None:
    """Pretrain as `config.pretrain` says and save a checkpoint of step 0, unless the run has a checkpoint.

    Args:
        setup: the setup of the run.
        checkpoints: the folder of its checkpoints.
        state: its state.
        progress: its counters, to which the time of the pretraining is added.
        tracker: its tracker.
        stop: ends the pretraining, without a checkpoint.

    Returns:
        The state, or None if the pretraining was stopped.

    Raises:
        NonFiniteError: if a number is not finite.
    """
    config = setup.config.pretrain
    if not config.steps or checkpoint.complete_steps(checkpoints):
        return state
    if processes.any_of(stop.is_set()):
        return None
    start = time.monotonic()
    _begin(tracker, f"compiling the pretraining ({config.trials} trials of {config.trial_steps:,} steps at a time)")
    after = pretrained(setup, state, tracker, stop)
    progress.seconds += time.monotonic() - start
    if after is not None:
        save(setup, checkpoints, after, progress)
    return after


def _begin(tracker: Tracker, what: str) -> None:
    """Call the tracker's optional method `begin`."""
    begin = getattr(tracker, "begin", None)
    if begin is not None:
        begin(what)


def _window(config: TrainConfig) -> int:
    """Return the environment steps over which the speed is averaged: two trials, because later segments are slower."""
    return 2 * config.trial.environments * config.trial.steps


def _startup_message(setup: Setup) -> str:
    """Describe what happens before the first update is done."""
    config, policy = setup.config, setup.config.policy
    memory = policy.architecture
    chunk = "trial" if config.chunk == "trial" else "update"
    text = f"compiling the first {chunk} ({policy.memory}, {memory.layers} layers of width {memory.width}"
    text += f", {config.trial.environments} environments, {config.trial.steps:,} steps of context)"
    return f"starting workers and {text}" if setup.trials.env.on_host else text


def total_env_steps(config: TrainConfig) -> int:
    """Return the environment steps of the whole run, which consists of whole trials."""
    return config.trials * config.trial.environments * config.trial.steps


@settings.with_standard
def save(setup: Setup, checkpoints: Path, state: TrainState, progress: Progress) -> None:
    """Save a checkpoint named after the number of environment steps, unless it exists."""
    if processes.as_first(progress.env_steps not in checkpoint.complete_steps(checkpoints)):
        spaces = spaces_to_json(spaces_of(setup.trials.env))
        counters, kernels = dataclasses.asdict(progress), used_kernels(setup.device_policy)
        about = (counters, spaces, kernels, setup.device_keys)
        checkpoint.save(checkpoints, progress.env_steps, state, setup.config, *about)
        _announce(checkpoints)


def _announce(checkpoints: Path) -> None:
    """Set what a process prints if it ends because another one was lost."""
    steps = checkpoint.complete_steps(checkpoints)
    resume = f"resume with: relic-jax train --resume {checkpoints.parent}"
    processes.announce(f"last checkpoint: {checkpoints / str(steps[-1])}; {resume}" if steps else "no checkpoint yet")


@settings.with_standard
def restore(setup: Setup, checkpoints: Path) -> tuple[TrainState, Progress]:
    """Restore the state and the counters of the newest checkpoint. Without a checkpoint, return initial ones."""
    steps = checkpoint.complete_steps(checkpoints)
    if not steps:
        return initial_state(setup), Progress()
    path = checkpoints / str(steps[-1])
    processes.in_all(lambda: checkpoint.verify(path) if processes.is_first() else None)
    _, counters = checkpoint.load_meta(path)
    report_changes(checkpoint.load_kernels(path), setup.device_policy)
    with prng.using(checkpoint.load_prng(path)):
        abstract = setup.abstract_state
        shardings = state_shardings(setup.config, abstract)
        state = processes.in_all(lambda: checkpoint.load_state(path, abstract, shardings))
    return state, Progress(**counters)


def as_started(setup: Setup, checkpoints: Path) -> Setup:
    """Return the setup with the `device_keys` that the run started with."""
    steps = checkpoint.complete_steps(checkpoints)
    device_keys = bool(steps) and checkpoint.has_device_keys(checkpoints / str(steps[-1]))
    return setup if setup.device_keys == device_keys else dataclasses.replace(setup, device_keys=device_keys)


def prng_of(checkpoints: Path) -> dict[str, Any]:
    """Return the PRNG settings of a run: those of its newest checkpoint, or JAX's current ones if there is none."""
    steps = checkpoint.complete_steps(checkpoints)
    if not steps:
        return prng.current()
    path = checkpoints / str(steps[-1])
    checkpoint.load_meta(path)
    return checkpoint.load_prng(path)


def records(config: TrainConfig, env_steps: int, metrics: dict[str, np.ndarray]) -> Iterator[Record]:
    """Convert the metrics of a chunk to one record per update.

    Args:
        config: the run's config.
        env_steps: environment steps before the chunk.
        metrics: metrics by name, with a leading axis [U] or none.
    """
    stacked = {name: np.atleast_1d(value) for name, value in metrics.items()}
    for index in range(len(stacked["loss"])):
        env_steps += config.trial.environments * config.trial.segment
        values = {name: float(value[index]) for name, value in stacked.items()}
        values = {name: x for name, x in values.items() if not (name.startswith("curriculum/") and math.isnan(x))}
        episodes, total, successes = (values.pop(name) for name in ("episodes", "return_sum", "success_sum"))
        others = {name: values.pop(name) for name in list(values) if name.startswith("episode/")}
        record: Record = {"env_steps": env_steps, "episodes": episodes}
        if episodes:
            record |= {"return": total / episodes, "success": successes / episodes}
            record |= {name: value / episodes for name, value in others.items()}
        if values.get("recall_known"):
            values["recall_right"] /= values["recall_known"]
        yield record | values


def check_finite(setup: Setup, record: Record, checkpoints: Path) -> None:
    """Remove the counts of non-finite numbers from a record.

    Raises:
        NonFiniteError: if a count is not 0.
    """
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
        name = task if setup.rungs is None else setup.rungs.task_name(task)
        where += f", training task {name}{task_text(setup.tasks, task)}" if task >= 0 else ""
    problem, unit = ("no legal action", "steps") if first_nonfinite == "legal" else ("not finite", "numbers")
    name = "" if first_nonfinite == "legal" else f": {first_nonfinite}"
    raise NonFiniteError(
        f"{problem} at environment step {int(record['env_steps'])}{name} "
        f"({int(counts[first_nonfinite])} {unit}{where}); last good checkpoint: {good}"
    )


def task_text(tasks: Any, index: int) -> str:
    """Return a task in parentheses if it is a single number such as a seed, otherwise an empty string."""
    leaves = jax.tree.leaves(tasks)
    return f" ({leaves[0][index]})" if len(leaves) == 1 and np.ndim(leaves[0]) == 1 else ""


__all__ = ["ConfigError", "NonFiniteError", "Result", "duration", "prepare", "train"]
