"""Training and evaluation of the runs of a study: program by program, batch by batch."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from relic_jax.config import ConfigError, TrainConfig, leaves
from relic_jax.environment.base import Environment, split_hash
from relic_jax.evaluation import Report
from relic_jax.evaluation.concurrent import in_threads
from relic_jax.experiments import run as results
from relic_jax.experiments.sweep.board import Board, BoardTracker, Row
from relic_jax.experiments.sweep.evaluator import Evaluator, load
from relic_jax.experiments.sweep.folder import FAILED, StudyFolder
from relic_jax.experiments.sweep.grid import Member, programs
from relic_jax.experiments.sweep.warmup import compiled_meanwhile
from relic_jax.files import write_atomically
from relic_jax.metrics import JsonLines
from relic_jax.rl.population import Population
from relic_jax.rl.state import Setup
from relic_jax.rl.train import NonFiniteError, Result, prepare, total_env_steps, train
from relic_jax.rl.train_runs import Run, batches, train_runs
from relic_jax.stopping import Stop
from relic_jax.tracking import Trackers


class _StoppedError(Exception):
    """The sweep was stopped while it evaluated."""


def prepared(runs: Sequence[Member]) -> dict[str, Setup]:
    """Return the setup of each run by its name. Runs that share a program share the policy and the environment.

    Raises:
        ConfigError: A run cannot work in its environment or does not fit into memory, or runs cannot be compared.
    """
    envs: dict[tuple[object, ...], Environment] = {}
    found: dict[str, Setup] = {}
    for group in programs(runs):
        shared: Setup | None = None
        checked: set[TrainConfig] = set()
        for run in group:
            config = run.config
            key = (config.env, config.host, config.trial.action_repeat)
            if key not in envs:
                envs[key] = results.env_of(config)
            any_seed = dataclasses.replace(config, seed=0)
            if any_seed not in checked:
                checked.add(any_seed)
                setup = prepare(config, envs[key], resume=False)
                shared = shared or setup
            assert shared is not None
            found[run.name] = dataclasses.replace(shared, config=config)
    _check_comparable([(run, found[run.name].trials.env) for run in runs])
    return found


def _check_comparable(runs: Sequence[tuple[Member, Environment]]) -> None:
    """Raise ConfigError if the results of two runs could not stand in one table."""
    (first, env), hashes = runs[0], {}
    names = [name for run, _ in runs for name, _ in leaves(run.config) if name.startswith(("env.", "eval."))]
    names = [name for name in dict.fromkeys([*names, "trial.action_repeat"]) if name != "eval.every"]

    def numbers(run: Member, env: Environment) -> dict[str, object]:
        if id(env) not in hashes:
            hashes[id(env)] = split_hash(env.tasks("test"))
        about = {"env": env.name, "test split": hashes[id(env)], "horizon": env.horizon}
        settings = dict(leaves(run.config))
        return about | {name: settings.get(name) for name in names}

    expected = numbers(first, env)
    for run, own in runs[1:]:
        for name, value in numbers(run, own).items():
            if value != expected[name]:
                allowed = f"{expected[name]!r} as in {first.variant} (the runs of a study are compared)"
                raise ConfigError(f"{name} of {run.variant} is {value!r}; allowed: {allowed}")


class Engine:
    """Trains and evaluates the runs of a study.

    Args:
        folder: The folder of the study.
        runs: All its runs.
        setups: Their setups, by name.
        devices: Number of devices, each of which trains its share of the runs.
        board: Shows the progress.
        stop: Stops training after the current chunk.
        event: The event of `stop`.
        evaluator: Runs the evaluations that the study declares.

    Attributes:
        exit_code: Exit code of a process that a signal stopped during a run in worker processes, otherwise 0.
    """

    def __init__(
        self,
        folder: StudyFolder,
        runs: Sequence[Member],
        setups: dict[str, Setup],
        devices: int,
        board: Board,
        stop: Stop,
        event: threading.Event,
        evaluator: Evaluator,
    ) -> None:
        self._folder, self._runs, self._setups = folder, runs, setups
        self._devices, self._board, self._stop = devices, board, stop
        self._event, self._evaluator, self.exit_code = event, evaluator, 0

    def run(self) -> bool:
        """Train and evaluate what is not finished. Returns False if it was stopped."""
        for member in self._runs:
            self._folder.create_run(member)
            self._show_earlier(member)
        return all(self._program(group) for group in programs(self._runs))

    def _show_earlier(self, member: Member) -> None:
        total = total_env_steps(member.config)
        if (failure := self._folder.failure(member)) is not None:
            self._board.already(member.name, "failed", 0, failure)
        elif self._folder.is_finished(member):
            self._board.already(member.name, "finished", total)
        else:
            self._board.already(member.name, "waiting", self._as_run(member).saved_steps)

    def _as_run(self, member: Member) -> Run:
        return Run(self._setups[member.name], self._folder.run(member))

    def _is_done(self, member: Member) -> bool:
        if self._folder.failure(member) is not None:
            return True
        saved = self._as_run(member).saved_steps  # a finished run whose checkpoints were removed is left as it is
        return self._folder.is_finished(member) and (self._evaluator.is_done(member) or not saved)

    def _program(self, group: Sequence[Member]) -> bool:
        """Train and evaluate the runs of one program. Returns False if it was stopped."""
        open_members = [member for member in group if not self._is_done(member)]
        if not open_members or self._stop.is_set():
            return not open_members
        runs = {member.name: self._as_run(member) for member in open_members}
        by_folder = {run.folder: member for member in open_members for run in (runs[member.name],)}
        trained = [run for run in runs.values() if run.is_trained]
        untrained = [run for run in runs.values() if not run.is_trained]
        if not self._evaluate_all([(by_folder[run.folder], run) for run in trained]):
            return False
        if not untrained:
            return True
        train_batch, slots = self._trainer(group)
        for index, batch in enumerate(batches(untrained, slots)):
            for run in batch:
                self._board.set(by_folder[run.folder].name, "compiling", run.saved_steps)
            with contextlib.nullcontext() if index else compiled_meanwhile(batch[0].setup, self._devices, self._stop):
                finished = train_batch(batch)
            if not finished or not self._evaluate_all([(by_folder[run.folder], run) for run in batch]):
                return False
        return True

    def _trainer(self, group: Sequence[Member]) -> tuple[Callable[[Sequence[Run]], bool], int]:
        """Return a function that trains a batch of runs, and the size of its batches.

        The traced scalars are those of the whole group, so that a resumed sweep compiles the same program.
        """
        setups = [self._setups[member.name] for member in group]
        if setups[0].trials.env.on_host:  # worker processes: one run after the other
            return lambda batch: self._train_on_host(batch[0]), 1
        population = Population(setups, self._devices)
        return lambda batch: train_runs(population, batch, self._tracker, self._stop), population.slots

    def _tracker(self, run: Run) -> Trackers:
        return Trackers([JsonLines(run.folder, run.progress.env_steps), BoardTracker(self._board, run.folder.name)])

    def _train_on_host(self, run: Run) -> bool:
        def tracker(steps: int) -> Trackers:
            run.progress.env_steps = steps
            return self._tracker(run)

        try:
            result: Result = train(run.setup, run.folder, tracker, resume=True, stop=self._event)
        except NonFiniteError as error:
            run.error = error
            return True
        self.exit_code = result.exit_code
        return result.finished

    def _evaluate_all(self, trained: Sequence[tuple[Member, Run]]) -> bool:
        """Evaluate trained runs, one per device at the same time. Returns False if it was stopped."""
        threads = min(
            (self._evaluator.concurrent(member, run.setup, self._devices) for member, run in trained), default=1
        )
        return all(in_threads(lambda item: self._evaluate(*item), trained, threads))

    def _evaluate(self, member: Member, run: Run) -> bool:
        """Evaluate a trained run on held-out tasks, if it is not yet, and as the study declares.

        Returns:
            False if it was stopped. The results of whole evaluations are kept.
        """
        folder = self._folder.run(member)
        if run.error is not None:
            write_atomically(folder / FAILED, f"{run.error}\n")
            self._board.set(member.name, "failed", result=str(run.error))
            return True
        if self._stop.is_set():
            return False
        self._board.set(member.name, "evaluating", total_env_steps(member.config), "")

        def progress(fraction: float) -> None:
            if self._stop.is_set():
                raise _StoppedError

        result = ""
        try:
            if not self._folder.is_finished(member):
                mean = evaluate(folder, run.setup, progress).returns.mean
                later = f", later {sum(mean[1:]) / len(mean[1:]):.1f}" if len(mean) > 1 else ""
                result = f"first episode {mean[0]:.1f}{later}"
            self._evaluator(member, run.setup, progress)
        except _StoppedError:
            return False
        self._board.set(member.name, "finished", result=result)
        return True


def evaluate(folder: Path, setup: Setup, progress: Callable[[float], None]) -> Report:
    """Evaluate a trained run as `relic-jax train` does and write curve.* and trial.gif. The figure is written last."""
    policy = load(folder, setup)
    report, curves, env = results.evaluate_policies([policy], None, "test", progress, setup.trials.env)
    results.write_trial(folder / "trial.gif", env, curves[0])
    results.write_results(folder / "curve", report, folder.name)
    return report


def rows(runs: Sequence[Member]) -> list[Row]:
    """Return the rows of the board."""
    return [Row(run.name, total_env_steps(run.config)) for run in runs]
