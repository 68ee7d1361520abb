"""`relic-jax train`: a run from its preset or its folder to its curve."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from relic_jax import checkpoint, trust
from relic_jax.config import ConfigError, EvalConfig, TrainConfig
from relic_jax.dashboards import OptionalTracker, TensorBoard, WandB, WandBOptions, load_extra, wandb_run
from relic_jax.environment.base import Environment
from relic_jax.envs import registry
from relic_jax.evaluate import Curves
from relic_jax.experiments import folders, presets, run
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.extending import extended, record_extension
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

ALIASES = {
    "--backend": "--host.backend",
    "--habitat-python": "--host.python",
    "--env.wrappers": "--host.wrappers",
}
"""Other names of options of `train` and `envs`."""


def without_aliases(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options' own names, `--option VALUE` and `--option=VALUE`."""
    parts = (argument.partition("=") for argument in arguments)
    return [ALIASES.get(name, name) + equals + value for name, equals, value in parts]


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train ReLIC, evaluate it on held-out tasks, plot. `relic-jax train PRESET`, or `--resume RUN` to go on."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    name: str | None = None
    """Name of the run's folder; default: PRESET-seedN."""
    runs: Path = Path("runs")
    """Folder that holds the runs."""
    resume: Path | None = None
    """Go on with this run from its newest checkpoint, or from this checkpoint (RUN/checkpoints/STEP); the config is the
    run's own."""
    extend_to: int | None = None
    """With --resume: go on to that many steps in all, also where the run has finished. The schedules of the learning
    rate and of the entropy bonus are those of a run of that many steps."""
    trust: bool = False
    """With --resume: run the environment and the workers that the run's config names, also where another user made it.
    They can be any program."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to TensorBoard or Weights & Biases (each an extra)."""
    wandb: WandBOptions = dataclasses.field(default_factory=WandBOptions)
    """With --track wandb."""


def train_main(arguments: Sequence[str]) -> None:
    """`relic-jax train`."""
    command, folder, resume = parse_train(arguments)
    config = command.config
    offer_cores(config.devices or 1)  # before the environment is made: importing a suite may touch a device
    env = run.env_of(config)
    setup = prepare(config, env, resume=resume)
    for extra in command.track:
        load_extra(extra)
    if "wandb" in command.track:
        wandb_run(folder, command.wandb)
    with folders.resumed_folder(folder) if resume else folders.new_folder(folder, setup.config):
        if command.resume is not None and command.resume != folder:
            for moved in checkpoint.set_newer_aside(command.resume):
                print(f"set aside: {moved}")
        if command.extend_to is not None:
            record_extension(folder, folders.read_config(folder), setup.config)
        with resumable(folder):
            _run(command, folder, setup, resume)


def _run(command: TrainCommand, folder: Path, setup: Setup, resume: bool) -> None:
    """Trains and evaluates in a folder whose lock this process holds."""
    config, env = command.config, setup.trials.env
    verb, devices = "resuming" if resume else "training", setup.config.devices
    print(f"{verb} {folder} · env {config.env} · {config.total_steps:,} steps · {devices} device(s)", flush=True)
    print(registry.describe(config.env, env), flush=True)
    print(f"context: {context_line(setup)}", flush=True)
    result = train(setup, folder, lambda env_steps: make_trackers(command, folder, env_steps), resume=resume)
    if not result.finished:
        print(f"stopped at {int(result.state.env_steps):,} steps, saved; go on with: relic-jax train --resume {folder}")
        sys.exit(result.exit_code)
    finish(folder, result)


def parse_train(arguments: Sequence[str]) -> tuple[TrainCommand, Path, bool]:
    """Returns (command, run folder, whether it is resumed)."""
    arguments = without_aliases(arguments)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, options = (arguments[0], arguments[1:]) if named else (None, arguments)
    resumed = _option(options, "--resume")
    if preset is not None:
        default = presets.get(preset).config
    elif resumed is not None:
        default = folders.read_config(folders.run_of(resumed))
    elif {"-h", "--help"} & set(options):
        default = TrainConfig()
    else:
        raise ConfigError(f"preset is missing; allowed: {', '.join(presets.PRESETS)}, or --resume RUN")
    command = parse(TrainCommand, options, f"relic-jax train {preset or ''}", TrainCommand(default))
    _check_wandb(command)
    if command.resume is not None:
        own, folder = folders.open_folder(command.resume, command.config), folders.run_of(command.resume)
        if preset is None:  # with a preset the user named all of it: the configs are equal
            mine = command.trust or folders.is_own(folder, own)
            trust.check(own, folder, own=mine, given=run.given_fields(options))
        config = extended(command.resume, own, command.extend_to)
        return dataclasses.replace(command, config=config), folder, True
    if command.extend_to is not None:
        raise ConfigError(f"extend-to is {command.extend_to}; allowed: with --resume RUN")
    run.check_host(command.config.env, command.config.host, default.host)
    name = f"{preset}-seed{command.config.seed}" if command.name is None else command.name
    folders.check_name(name)
    return command, command.runs / name, False


def _check_wandb(command: TrainCommand) -> None:
    """Raises ConfigError where options of W&B are given without it, or are empty."""
    for field in dataclasses.fields(WandBOptions):
        value, default = (getattr(options, field.name) for options in (command.wandb, WandBOptions()))
        if value != default and "wandb" not in command.track:
            raise ConfigError(f"wandb.{field.name} is {value!r}; allowed: {default!r} without --track wandb")
        if value == "" or (field.name == "tags" and "" in value):
            raise ConfigError(f"wandb.{field.name} is {value!r}; allowed: a text that is not empty")


def _option(arguments: Sequence[str], name: str) -> Path | None:
    """The value of an option, the last one where it is given more than once."""
    found = None
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            found = Path(arguments[index + 1])
        if argument.startswith(name + "="):
            found = Path(argument.removeprefix(name + "="))
    return found


def make_trackers(command: TrainCommand, folder: Path, env_steps: int) -> Tracker:
    """Console and JSON lines always, the others on request."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder, env_steps),
        "wandb": lambda: WandB(folder, dataclasses.asdict(command.config), command.wandb),
    }
    extra = [OptionalTracker(name, makers[name]) for name in dict.fromkeys(command.track)]
    return Trackers([JsonLines(folder, env_steps), Console(total_env_steps(command.config)), *extra])


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Says how to go on with a run that was interrupted at once, or that could not be written."""
    hint = f"go on with: relic-jax train --resume {folder}"
    with storage_errors(hint):
        try:
            yield
        except KeyboardInterrupt as error:
            raise type(error)(hint) from None


def finish(folder: Path, result: Result) -> None:
    """Evaluates a finished run on held-out tasks and says what was reached."""
    summary, curves, env = evaluate(
        run.load([folder], None, trust=True), None, "test", resume_hint=f"relic-jax train --resume {folder}"
    )
    with Activity(f"drawing {folder / 'curve.png'} and trial.gif"):
        files = run.write_results(folder / "curve", summary, folder.name)
        gif = run.write_trial(folder / "trial.gif", env, curves[0])
    print(f"trained {int(result.state.env_steps):,} steps in {duration(result.seconds)}")
    print("\n".join(run.describe_result(summary)))
    names = [path.name for path in (*files, gif) if path]
    print(f"in {folder}: {', '.join(names)}, checkpoints/, metrics.jsonl")
    print(f"next: relic-jax evaluate {folder} --tasks train")


def evaluate(
    policies: Sequence[LoadedPolicy],
    config: EvalConfig | None,
    split: Literal["test", "train"],
    resume_hint: str | None = None,
    env: Environment | None = None,
) -> tuple[dict[str, Any], list[Curves], Environment]:
    """`run.evaluate_policies` with its progress; SIGINT or SIGTERM ends it."""
    with stop_signals() as stopping, Activity(f"evaluating on {split} tasks") as activity:

        def progress(fraction: float) -> None:
            lines = "computing the random and the optimal line"
            activity.show(f"evaluating on {split} tasks {fraction:4.0%}" if fraction < 1 else lines)
            if stopping.is_set():
                hint = f"; go on with: {resume_hint}" if resume_hint else ""
                activity.say(f"stopped during evaluation, nothing written{hint}")
                sys.exit(stopping.exit_code)

        return run.evaluate_policies(policies, config, split, progress, env)
