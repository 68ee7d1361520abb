"""The command line of `relic-jax sweep`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from relic_jax.config import ConfigError, TrainConfig, changed, differences, value_of
from relic_jax.envs import registry
from relic_jax.experiments import folders, presets
from relic_jax.experiments.arguments import check_env_options, last_value, parse, with_current_names
from relic_jax.experiments.studies import FOLDER
from relic_jax.experiments.sweep import estimate, evaluator
from relic_jax.experiments.sweep import folder as study_folder
from relic_jax.experiments.sweep.board import Board
from relic_jax.experiments.sweep.engine import Engine, prepared, rows
from relic_jax.experiments.sweep.grid import Member, describe, members
from relic_jax.experiments.sweep.report import write_report
from relic_jax.experiments.sweep.reuse import find_recorded, find_reusable, reuse_runs, take_recorded
from relic_jax.experiments.sweep.study import MANAGED, Method, Study, read_study, seeds_of, study_of
from relic_jax.progress import Activity
from relic_jax.rl.parallel import offer_cores
from relic_jax.stopping import stop_signals
from relic_jax.validation import require


@dataclasses.dataclass(frozen=True)
class SharedConfig(TrainConfig):
    """The fields that all runs have. `--seeds` lists the seeds."""

    seed: tyro.conf.Suppress[int] = 0
    devices: int | None = None
    """Number of devices, each of which trains its share of the runs (on CPU: a run per core). None: all."""


@dataclasses.dataclass(frozen=True)
class SweepCommand:
    """Train a grid of runs, evaluate each and compare them. `relic-jax sweep STUDY.toml`, or `relic-jax sweep PRESET`.

    All other options are fields of the configuration, as of relic-jax train. They are set in all runs.
    """

    config: Annotated[SharedConfig, tyro.conf.arg(name="")]
    seeds: str | None = None
    """A number of seeds, or a list such as 0,3,5. Default: the study's, or 1."""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """FIELD=VALUE,VALUE: train with each value, e.g. --vary policy.transformer.sink=kv,none. Several options give all
    combinations."""
    name: str | None = None
    """Name of the study's folder. Default: the study's name or file, or the preset."""
    runs: Path = Path("runs")
    """Folder that holds the study's folder."""
    resume: Path | None = None
    """Continue the study in this folder. Finished runs are not repeated."""
    reuse: bool = False
    """Copy finished runs with the same configuration and seed from other studies in the folder of the study instead of
    training them again."""
    recorded: Path | None = None
    """Take the numbers of runs with the same configuration and seed from RECORDED/*/runs.jsonl, which `python -m
    experiments.studies` writes, instead of training them. Studies that declare evaluations need weights, and train."""
    max_runs: int = 200
    """Largest number of runs; a larger grid is refused."""
    dry_run: bool = False
    """Print the grid and its cost, and stop."""
    trust: bool = False
    """With --resume: run the environments and the workers that the study names, even if another user made it."""


def sweep_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax sweep`."""
    command, study, path = parse_sweep(arguments)
    offer_cores(command.config.devices or 1)  # first, because importing a suite can initialize devices
    sys.exit(start(command, study, path))


def start(command: SweepCommand, study: Study, path: Path, stop: threading.Event | None = None) -> int:
    """Train, evaluate and compare the runs of a study.

    Args:
        command: The options.
        study: The study.
        path: Its folder.
        stop: An event that stops the sweep after the current chunk, as SIGINT does.

    Returns:
        The exit code: 0, 1 if a run failed, or 128 plus the number of the signal that stopped it.

    Raises:
        ConfigError: If the study does not fit, or its folder holds another one.
    """
    runs, resume = members(study), command.resume is not None
    _check_start(command, study, path, runs)
    devices, setups = _devices(command.config.devices), prepared(runs)
    evaluator.check(study, runs, setups)
    folder = study_folder.StudyFolder(path)
    taken = _taken(command, study, folder, runs)
    lines = [*describe(study, runs), *estimate.describe(folder, runs, setups, devices, taken)]
    print("\n".join([*lines, *evaluator.describe(study, runs)]), flush=True)
    if command.dry_run:
        return 0
    event = stop or threading.Event()
    with study_folder.opened(path, study, runs, resume=resume) as opened:
        for run, source in reuse_runs(opened, runs) if command.reuse else ():
            print(f"{run.name}: copied from {source}")
        for run, name in take_recorded(opened, study, runs, command.recorded) if command.recorded else ():
            print(f"{run.name}: recorded as {name}")
        with stop_signals(event) as stopping, Board(rows(runs)) as board:
            engine = Engine(opened, runs, setups, devices, board, stopping, event, evaluator.Evaluator(study, opened))
            finished = engine.run()
        _report(opened, study, runs)
    if not finished:
        print(f"stopped, saved; resume with: relic-jax sweep --resume {path}")
        return stopping.exit_code or engine.exit_code
    return 1 if any(opened.failure(run) is not None for run in runs) else 0


def _check_start(command: SweepCommand, study: Study, path: Path, runs: Sequence[Member]) -> None:
    """Raise ConfigError if the grid is too large, or the folder holds another study or names programs of others."""
    if len(runs) > command.max_runs:
        raise ConfigError(f"this grid has {len(runs):,} runs; allowed: at most --max-runs ({command.max_runs:,})")
    if command.resume is None:
        study_folder.check_new(path, study)
    elif not command.trust:
        study_folder.check_trust(path, runs)


def _taken(
    command: SweepCommand, study: Study, folder: study_folder.StudyFolder, runs: Sequence[Member]
) -> frozenset[str]:
    """Return the names of the runs that are copied or recorded. Raises ConfigError if results are missing."""
    copied = {run.name for run, _ in find_reusable(folder, runs)} if command.reuse else set()
    recorded = find_recorded(folder, study, runs, command.recorded) if command.recorded else ()
    return frozenset(copied | {run.name for run, _, _ in recorded})


def _devices(wanted: int | None) -> int:
    available = len(jax.devices())
    if wanted is not None and not 0 < wanted <= available:
        raise ConfigError(f"devices is {wanted}; allowed: 1 … {available} ({jax.default_backend()})")
    return wanted or available


def _report(opened: study_folder.StudyFolder, study: Study, runs: Sequence[Member]) -> None:
    with Activity("comparing the runs"):
        files = write_report(opened, study, runs)
    if files:
        print(files[0].read_text(encoding="utf-8"))
        print(f"in {opened.path}: {', '.join(file.name for file in files)}, {len(runs)} run folders")


def parse_sweep(arguments: Sequence[str]) -> tuple[SweepCommand, Study, Path]:
    """Return (the command, the study, its folder).

    Raises:
        ConfigError: If the options or the study do not fit.
    """
    arguments = with_current_names(arguments)
    named = bool(arguments) and not arguments[0].startswith("-")
    source, options = (arguments[0], list(arguments[1:])) if named else (None, list(arguments))
    resumed = last_value(options, "--resume")
    study = _source(source, None if resumed is None else Path(resumed), options)
    default = study.methods[0].config
    env = last_value(options, "--env") or default.env.name
    check_env_options(env, options)
    default = SharedConfig(**vars(default) | {"env": registry.renamed(default.env, env), "devices": None, "seed": 0})
    if (seed := last_value(options, "--seed")) is not None:
        raise ConfigError(f"seed is {seed}; allowed: --seeds instead, a number of seeds or a list such as 0,3,5")
    place = source or ("STUDY.toml|PRESET" if {"-h", "--help"} & set(options) else "")
    command = parse(SweepCommand, options, f"relic-jax sweep {place}", SweepCommand(default))
    study = _with_options(study, command, default, last_value(options, "--env"))
    if command.name is not None:
        study = dataclasses.replace(study, name=command.name)
    folders.check_name(study.name)
    if command.resume is None:
        return command, study, command.runs / study.name
    if source is not None:
        study_folder.check_same(command.resume, study)
    elif command.seeds is not None or command.vary or differences(default, command.config) not in ([], ["devices"]):
        fields = ["seeds"] * (command.seeds is not None) + ["vary"] * bool(command.vary)
        fields += [name for name in differences(default, command.config) if name != "devices"]
        raise ConfigError(f"{fields[0]} is set; allowed: nothing with --resume, which continues the study as it is")
    return command, study, command.resume


def _source(source: str | None, resumed: Path | None, options: Sequence[str]) -> Study:
    """Return the study of a file, of a preset or of a folder that is resumed."""
    if source is None and resumed is not None:
        return study_folder.read(resumed)
    if source is None:
        if {"-h", "--help"} & set(options):
            return Study("study", (0,), (Method("", TrainConfig()),), {})
        raise ConfigError("study is missing; allowed: a file STUDY.toml, a preset, or --resume FOLDER")
    if source.endswith(".toml") or "/" in source:
        return read_study(Path(source))
    if source not in presets.PRESETS:
        files = (Path(f"{source}.toml"), FOLDER / f"{source}.toml")
        if file := next((file for file in files if file.is_file()), None):
            near = Path(os.path.relpath(file)) if file.is_relative_to(Path.cwd()) else file
            raise ConfigError(f"study is {source!r}; allowed: a file STUDY.toml, or a preset; did you mean {near}?")
    return Study(source, (0,), (Method("", presets.get(source).config),), {})


def _with_options(study: Study, command: SweepCommand, default: TrainConfig, env: str | None) -> Study:
    """Return the study with the fields, the seeds and the varied values of the command line."""
    fields = [name for name in differences(default, command.config) if name not in MANAGED]
    methods = tuple(_with_fields(method, command.config, fields, env) for method in study.methods)
    content = {"vary": _given_values(command.vary)}
    vary = study.vary | study_of(content, Path(study.name + ".toml"), methods).vary
    for field in fields:
        allowed = "no such option, because the study varies the field (--vary sets other values)"
        require(field not in vary, field, value_of(command.config, field), allowed)
    seeds = study.seeds if command.seeds is None else seeds_of(_seeds(command.seeds))
    return dataclasses.replace(study, seeds=seeds, methods=methods, vary=vary)


def _with_fields(method: Method, config: TrainConfig, fields: Sequence[str], env: str | None) -> Method:
    """Return the method in the environment that --env names, if it is set, and with these fields of `config`."""
    own = method.config
    if env is not None:
        own = dataclasses.replace(own, env=registry.renamed(own.env, env))
    for name in fields:
        own = changed(own, name, value_of(config, name))
    return Method(method.name, own)


def _seeds(text: str) -> Any:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"seeds is {text!r}; allowed: a number, or a list such as 0,3,5") from None
    return numbers if "," in text else numbers[0]


def _given_values(options: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each field in the options --vary. Raises ConfigError if a field has two options."""
    found: dict[str, list[Any]] = {}
    for option in options:
        field, values = _varied(option)
        if field in found:
            allowed = f"one --vary for each field, as --vary {field}=VALUE,VALUE"
            raise ConfigError(f"vary is {option!r}, the second of {field}; allowed: {allowed}")
        found[field] = values
    return found


def _varied(text: str) -> tuple[str, list[Any]]:
    """Return the field and the values of an option --vary. Values are read as JSON where that fits."""
    field, equals, values = text.partition("=")
    if not equals or not field or not values:
        raise ConfigError(f"vary is {text!r}; allowed: FIELD=VALUE,VALUE, e.g. policy.transformer.sink=kv,none")
    return field.replace("-", "_") if not field.startswith("env.") else field, [_json(v) for v in values.split(",")]


def _json(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text
