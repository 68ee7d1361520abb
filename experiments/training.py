"""`relic-jax train`: a run from its preset or its folder to its curve."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from relic_jax import checkpoint, processes, trust
from relic_jax.config import ConfigError, EvalConfig, TrainConfig
from relic_jax.dashboards import OptionalTracker, TensorBoard, WandB, WandBOptions, load_extra, wandb_run
from relic_jax.environment.base import Environment
from relic_jax.envs import registry
from relic_jax.evaluation import Curves, Report
from relic_jax.experiments import distributed, folders, presets, run
from relic_jax.experiments.arguments import check_env_options, check_path, last_value, parse, with_current_names
from relic_jax.experiments.extending import extended, record_extension
from relic_jax.experiments.unread import check_read
from relic_jax.files import storage_errors
from relic_jax.loading import LoadedPolicy
from relic_jax.metrics import JsonLines
from relic_jax.progress import Activity, duration
from relic_jax.rl.memory_budget import context_line
from relic_jax.rl.parallel import offer_cores
from relic_jax.rl.state import Setup
from relic_jax.rl.train import Result, prepare, total_env_steps, train
from relic_jax.stopping import stop_signals
from relic_jax.tracking import Console, Tracker, Trackers


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a policy, evaluate it on held-out tasks, plot. `relic-jax train PRESET`, or `--resume RUN` to continue."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    name: str | None = None
    """Name of the run folder. Default: PRESET-seedN."""
    runs: Path = Path("runs")
    """Folder that holds the run folders."""
    resume: Path | None = None
    """Continue this run from its newest checkpoint, or from this checkpoint (RUN/checkpoints/STEP), with the run's
    config."""
    extend_to: int | None = None
    """With --resume: the new total of environment steps, also for a finished run. The schedules of the learning rate
    and of the losses' weights are those of a run of this length."""
    trust: bool = False
    """With --resume: run the environment and the workers that the run's config names, even if another user made the
    run. They can be any program."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to TensorBoard or Weights & Biases (each needs an extra)."""
    wandb: WandBOptions = dataclasses.field(default_factory=WandBOptions)
    """With --track wandb."""
    distributed: bool = False
    """This process is one of several that train the run together; Slurm, Open MPI and Kubernetes are detected."""
    coordinator: str | None = None
    """The same without detection: HOST:PORT of process 0, which must be free there."""
    num_processes: int | None = None
    """With --coordinator: the number of processes."""
    process_id: int | None = None
    """With --coordinator: the number of this process, from 0."""


def train_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax train`."""
    options = distributed.process_options(arguments)
    with distributed.connected(options):

        def parsed() -> tuple[tuple[TrainCommand, Path, bool], dict[str, Any]]:
            command, folder, resume = parse_train(arguments)
            return (command, folder, resume), distributed.facts_of(command.config, folder, resume)

        command, folder, resume = distributed.agreed(options is not None, "config", parsed)
        offer_cores(command.config.devices or 1)  # first, because importing a suite can initialize devices
        try:
            start(command, folder, resume)
        except Stopped as stopped:
            sys.exit(stopped.exit_code)


class Stopped(KeyboardInterrupt):
    """A signal or an event stopped training or evaluation, which printed a message. exit_code: for the process."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def start(command: TrainCommand, folder: Path, resume: bool, stop: threading.Event | None = None) -> None:
    """Train a new run or resume one, evaluate it on held-out tasks and draw its figures.

    Args:
        command: The options of `relic-jax train`.
        folder: The run folder.
        resume: Whether the run exists.
        stop: An event that stops the run, as SIGINT does.

    Raises:
        ConfigError: If the options do not fit.
        Stopped: If the run was stopped before it was complete.
    """
    several = command.distributed or command.coordinator is not None
    with ExitStack() as stack:
        setup = distributed.agreed(several, "setup", lambda: _prepared(command, folder, resume, stack))
        with resumable(folder):
            _run(command, folder, setup, resume, stop)


def _prepared(command: TrainCommand, folder: Path, resume: bool, stack: ExitStack) -> tuple[Setup, dict[str, Any]]:
    """Return the setup of a run, with its folder locked within `stack`, and what all processes must have in common."""
    env = run.env_of(command.config)
    setup = prepare(command.config, env, resume=resume)
    checkpoint.orbax()  # before there is a folder: an interrupt in an import can be lost in JAX's garbage collection
    if processes.is_first():
        for extra in command.track:
            load_extra(extra)
        if "wandb" in command.track:
            wandb_run(folder, command.wandb)
        lock = folders.resumed_folder(folder) if resume else folders.new_folder(folder, setup.config)
        stack.enter_context(lock)
        if command.resume is not None and command.resume != folder:
            for moved in checkpoint.set_newer_aside(command.resume):
                print(f"set aside: {moved}")
        if command.extend_to is not None:
            record_extension(folder, folders.read_config(folder), setup.config)
    return setup, distributed.device_facts()


def _run(command: TrainCommand, folder: Path, setup: Setup, resume: bool, stop: threading.Event | None) -> None:
    """Train and evaluate in a folder whose lock this process holds."""
    config, env = command.config, setup.trials.env
    verb, devices = "resuming" if resume else "training", setup.config.devices
    several = f" of {jax.process_count()} processes" if processes.are_several() else ""
    print(
        f"{verb} {folder} · env {config.env.name} · {config.total_steps:,} steps · {devices} device(s){several}",
        flush=True,
    )
    print(registry.describe(config.env.name, env), flush=True)
    print(f"context: {context_line(setup)}", flush=True)
    result = train(setup, folder, lambda steps: make_trackers(command, folder, steps), resume=resume, stop=stop)
    if not result.saved:
        message = f"stopped during pretraining, which starts again with: relic-jax train --resume {folder}"
        print(message)
        raise Stopped(message, result.exit_code)
    if not result.finished:
        steps = int(result.state.env_steps)
        message = f"stopped at {steps:,} steps, saved; resume with: relic-jax train --resume {folder}"
        print(message)
        raise Stopped(message, result.exit_code)
    if processes.is_first():
        finish(folder, result, stop, (devices or 1) // jax.process_count())
    distributed.wait_for_first(processes.are_several())


def parse_train(arguments: Sequence[str]) -> tuple[TrainCommand, Path, bool]:
    """Return (the command, the run folder, whether it is resumed)."""
    arguments = with_current_names(arguments)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, options = (arguments[0], arguments[1:]) if named else (None, arguments)
    resumed = last_value(options, "--resume")
    if preset is not None:
        default = presets.get(preset).config
    elif resumed is not None:
        check_path("resume", Path(resumed))
        default = folders.read_config(folders.run_of(Path(resumed)))
    elif {"-h", "--help"} & set(options):
        default = TrainConfig()
    else:
        raise ConfigError("preset is missing; allowed: a name that relic-jax presets lists, or --resume RUN")
    env = last_value(options, "--env") or default.env.name
    check_env_options(env, options)
    default = dataclasses.replace(default, env=registry.renamed(default.env, env))
    command = parse(TrainCommand, options, f"relic-jax train {preset or ''}", TrainCommand(default))
    return resolve(command, preset, default, run.given_fields(options))


def resolve(
    command: TrainCommand, preset: str | None, default: TrainConfig, given: frozenset[str]
) -> tuple[TrainCommand, Path, bool]:
    """Check a command and find its run folder.

    Args:
        command: The options of `relic-jax train`.
        preset: Begins the name of a new run. None: a run is resumed with its config.
        default: The config that the options changed.
        given: The names of the options that are set.

    Returns:
        (the command with its final config, the run folder, whether the run is resumed).

    Raises:
        ConfigError: If the options do not fit each other or the run.
    """
    _check_wandb(command)
    if command.resume is not None:
        own, folder = folders.open_folder(command.resume, command.config), folders.run_of(command.resume)
        if preset is None:  # with a preset the user named all of it: the configs are equal
            mine = command.trust or folders.is_own(folder, own)
            trust.check(own, folder, own=mine, given=given)
        config = extended(command.resume, own, command.extend_to)
        return dataclasses.replace(command, config=config), folder, True
    if command.extend_to is not None:
        raise ConfigError(f"extend-to is {command.extend_to}; allowed: with --resume RUN")
    run.check_workers(command.config.env.name, command.config.host, default.host)
    check_read(command.config, default)
    name = f"{preset}-seed{command.config.seed}" if command.name is None else command.name
    folders.check_name(name)
    return command, command.runs / name, False


def _check_wandb(command: TrainCommand) -> None:
    """Raise ConfigError if options of W&B are set without --track wandb, or are empty."""
    for field in dataclasses.fields(WandBOptions):
        value, default = (getattr(options, field.name) for options in (command.wandb, WandBOptions()))
        if value != default and "wandb" not in command.track:
            raise ConfigError(f"wandb.{field.name} is {value!r}; allowed: {default!r} without --track wandb")
        if value == "" or (field.name == "tags" and "" in value):
            raise ConfigError(f"wandb.{field.name} is {value!r}; allowed: a text that is not empty")


def make_trackers(command: TrainCommand, folder: Path, env_steps: int) -> Tracker:
    """Return the trackers of a run: console and JSON lines, and those of --track. Only process 0 of several has any."""
    if not processes.is_first():
        return Trackers([])
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder, env_steps),
        "wandb": lambda: WandB(folder, dataclasses.asdict(command.config), command.wandb),
    }
    extra = [OptionalTracker(name, makers[name]) for name in dict.fromkeys(command.track)]
    return Trackers([JsonLines(folder, env_steps), Console(total_env_steps(command.config)), *extra])


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Name the command that continues the run, if it is interrupted twice or cannot be written."""
    hint = f"resume with: relic-jax train --resume {folder}"
    with storage_errors(hint):
        try:
            yield
        except Stopped:
            raise
        except KeyboardInterrupt as error:
            raise type(error)(hint) from None


def finish(folder: Path, result: Result, stop: threading.Event | None = None, devices: int = 1) -> None:
    """Evaluate a finished run on held-out tasks, on devices of this process, and print the result."""
    policies, hint = run.load([folder], None, trust=True), f"relic-jax train --resume {folder}"
    report, curves, env = evaluate(policies, None, "test", resume_hint=hint, stop=stop, devices=devices)
    with Activity(f"drawing {folder / 'curve.png'} and trial.gif"):
        files = run.write_results(folder / "curve", report, folder.name)
        gif = run.write_trial(folder / "trial.gif", env, curves[0])
    print(f"trained {int(result.state.env_steps):,} steps in {duration(result.seconds)}")
    print("\n".join(run.describe_result(report)))
    names = [path.name for path in (*files, gif) if path]
    print(f"in {folder}: {', '.join(names)}, checkpoints/, metrics.jsonl")
    print(f"next: relic-jax evaluate {folder} --tasks train")


def evaluate(
    policies: Sequence[LoadedPolicy],
    config: EvalConfig | None,
    split: Literal["test", "train"],
    resume_hint: str | None = None,
    env: Environment | None = None,
    stop: threading.Event | None = None,
    devices: int = 1,
) -> tuple[Report, list[Curves], Environment]:
    """`run.evaluate_policies` with its progress. SIGINT, SIGTERM and `stop` end it, which raises Stopped."""
    with stop_signals(stop) as stopping, Activity(f"evaluating on {split} tasks") as activity:

        def progress(fraction: float) -> None:
            references = "computing the reference returns"
            activity.show(f"evaluating on {split} tasks {fraction:4.0%}" if fraction < 1 else references)
            if stopping.is_set():
                hint = f"; resume with: {resume_hint}" if resume_hint else ""
                message = f"stopped during evaluation, nothing written{hint}"
                activity.say(message)
                raise Stopped(message, stopping.exit_code)

        return run.evaluate_policies(policies, config, split, progress, env, devices)
