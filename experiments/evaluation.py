"""`relic-jax evaluate`: in-context learning curves of trained policies, with seeds pooled, in one or several groups."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from relic_jax.config import ConfigError, EvalConfig, WorkerConfig, validate
from relic_jax.environment.base import Environment, split_hash
from relic_jax.envs import registry
from relic_jax.evaluation import Report
from relic_jax.experiments import folders, pooling, run
from relic_jax.experiments.arguments import parse, split_env_options, with_current_names
from relic_jax.experiments.import_llamarl import KEPT
from relic_jax.experiments.training import Stopped, evaluate
from relic_jax.loading import LoadedPolicy
from relic_jax.plotting import FORMATS, figure_format, plot_curves
from relic_jax.progress import Activity
from relic_jax.rl.parallel import offer_cores
from relic_jax.spaces import image_mask
from relic_jax.validation import LARGEST, require

QUICK_EPISODES = 10
"""Episodes of an evaluation or a GIF of a pretrained policy, unless --episodes is set."""


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate trained policies in context: return and success per episode with 95% intervals, seeds pooled."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, checkpoint folders or exported folders. Several are seeds of one curve: their configs can differ in
    the seed, in devices and in worker options only."""
    pretrained: str | None = None
    """Name of a pretrained policy that is included, e.g. darkroom-dpt, instead of paths. Runs one trial per task of at
    most 10 episodes, unless --repeats and --episodes are set."""
    group: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=PATTERN, instead of paths, e.g. --group "kv=runs/kv-*" --group "none=runs/none-*". Each group is evaluated
    as the seeds of one curve; all curves are drawn in one figure."""
    env: str | None = None
    """Another environment with the same observations and actions; --env.OPTION sets its options. Default: the
    policies'."""
    tasks: Literal["test", "train"] = "test"
    """Split of the tasks."""
    episodes: int | None = None
    """Episodes per task, in one context. Default: the run's setting."""
    repeats: int | None = None
    """Trials per task. Default: the run's setting."""
    limit: int | None = None
    """Number of tasks, the first of the split. Default: the run's setting."""
    expert_episodes: int = 0
    """Number of first episodes in which the scripted expert acts (few-shot imitation)."""
    expert_quality: float = 1.0
    """Share of the expert's steps that take its action; the others, drawn at random, take random actions."""
    context_limit: int | None = None
    """Number N of last steps that each layer attends to. L layers reach back L · (N − 1) + 1 steps, through keys and
    values of earlier steps. 0: those of the current episode. Default: all."""
    change_task_at: Annotated[int | None, tyro.conf.arg(aliases=["--eval.change-task-at"])] = None
    """Episode, counted from 1, from which each trial continues in another task of the split, without notice and with
    the context kept. Default: one task per trial."""
    out: Path | None = None
    """Path of the results without suffix: OUT.json, OUT.csv and OUT.png (.pdf or .svg if OUT ends so). Groups are
    written to OUT-NAME.json etc., with one figure. Default: named after the options, in the folder of the first run;
    for exports and groups, in the current folder."""
    devices: int | None = None
    """Number of devices that share the trials (on CPU: cores). Environments in worker processes use one. Default: all
    of this machine."""
    trust: bool = False
    """Run the environment and the workers that a policy's config names, even if another user made the policy. They can
    be any program."""
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    """Worker processes, for environments that run in them. Default: the run's settings."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Seeds of one curve, and their environment. name: empty if there is only one group."""

    name: str
    policies: list[LoadedPolicy]
    env: Environment


def evaluate_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax evaluate`."""
    arguments = with_current_names(arguments)
    options, others = split_env_options(arguments)
    command = parse(EvaluateCommand, others, "relic-jax evaluate")
    given = run.given_fields(arguments)
    offer_cores(command.devices or 1)  # first, because importing a suite can initialize devices
    try:
        start(command, run.Overrides(command.env, options, command.host, given, "relic-jax evaluate"))
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def start(command: EvaluateCommand, overrides: run.Overrides) -> list[Report]:
    """Evaluate the policies of a command, write the results and return them, one for each group.

    Args:
        command: The options of `relic-jax evaluate`.
        overrides: The environment and the workers to use in place of the policies' own.

    Raises:
        ConfigError: If the options do not fit the policies.
        Stopped: If a signal stopped the evaluation.
    """
    available = len(jax.local_devices())
    devices = available if command.devices is None else command.devices
    require(1 <= devices <= available, "devices", devices, f"1 … {available} ({jax.default_backend()})")
    groups = _groups(command, overrides)
    config = evaluation_config(command, groups[0].policies[0])
    for group in groups:
        _check(group, config, command.tasks)
    _check_comparable(groups, command.tasks)
    stem, figure = _stem(command, config, groups)
    require(bool(stem.name), "out", str(command.out), "the name of a file")
    for group in groups:
        for file in run.result_files(_own_stem(stem, group), figure):
            folders.check_writable(file, "out")
    with folders.locked_run(stem.parent):
        return _evaluate(groups, config, command.tasks, stem, figure, devices)


def _evaluate(
    groups: Sequence[Group], config: EvalConfig, tasks: Literal["test", "train"], stem: Path, figure: str, devices: int
) -> list[Report]:
    """Evaluate every group and write its results."""
    reports, files = [], []
    for group in groups:
        report, _, _ = evaluate(group.policies, config, tasks, env=group.env, devices=devices)
        with Activity(f"drawing {_own_stem(stem, group)}{figure}"):
            files += run.write_results(_own_stem(stem, group), report, group.name or "ReLIC", figure)
        print("\n".join(f"{group.name}: {line}" if group.name else line for line in run.describe_result(report)))
        reports.append(report)
    if len(groups) > 1:
        files.append(stem.with_name(stem.name + figure))
        folders.check_writable(files[-1], "out")
        with Activity(f"drawing {files[-1]}"):
            plot_curves(reports, [group.name for group in groups], files[-1])
    print("wrote " + ", ".join(map(str, files)))
    return reports


def _groups(command: EvaluateCommand, overrides: run.Overrides) -> list[Group]:
    """Load the policies and make their environments. Raises ConfigError."""
    if command.group and (command.paths or command.pretrained is not None):
        raise ConfigError(f"group is {command.group[0]!r}; allowed: nothing where paths or --pretrained are given")
    paths: dict[str, Sequence[Path]] = {**pooling.groups(command.group)} if command.group else {"": command.paths}
    found = []
    for name, members in paths.items():
        policies = run.load(members, command.pretrained, trust=command.trust)
        pooling.check_pool(policies, [(policy.path.parent.parent / KEPT).is_file() for policy in policies])
        found.append(Group(name, *run.in_environment(policies, overrides)))
    return found


def _check(group: Group, config: EvalConfig, split: Literal["test", "train"]) -> None:
    """Raise ConfigError if a policy cannot be evaluated with these settings."""
    for policy in group.policies:
        images = any(image_mask(group.env.observation_spec))
        validate(dataclasses.replace(policy.config, eval=config), horizon=group.env.horizon, images=images)


def _check_comparable(groups: Sequence[Group], split: Literal["test", "train"]) -> None:
    """Raise ConfigError if groups are evaluated on different tasks."""
    tasks = [(_env_text(group), split_hash(group.env.tasks(split))) for group in groups]
    for group, own in zip(groups, tasks, strict=True):
        if own != tasks[0]:
            allowed = f"{tasks[0][0]} with the tasks {tasks[0][1]}, as group {groups[0].name!r}"
            raise ConfigError(f"group {group.name!r} is of env {own[0]} with the tasks {own[1]}; allowed: {allowed}")


def _env_text(group: Group) -> str:
    return group.env.name + registry.changed_options(group.policies[0].config.env).text


def evaluation_config(command: EvaluateCommand, first: LoadedPolicy) -> EvalConfig:
    """Return the first policy's evaluation settings, with those that the command line sets."""
    require(command.limit is None or 0 < command.limit <= LARGEST, "limit", command.limit, "more than 0, below 2^31")
    own = first.config.eval
    if command.pretrained is not None:
        own = dataclasses.replace(own, episodes=min(own.episodes, QUICK_EPISODES), repeats=1)
    return dataclasses.replace(
        own,
        episodes=own.episodes if command.episodes is None else command.episodes,
        repeats=own.repeats if command.repeats is None else command.repeats,
        tasks=own.tasks if command.limit is None else command.limit,
        expert_episodes=command.expert_episodes,
        expert_quality=command.expert_quality,
        context_limit=command.context_limit,
        change_task_at=command.change_task_at,
    )


def _stem(command: EvaluateCommand, config: EvalConfig, groups: Sequence[Group]) -> tuple[Path, str]:
    """Return the common start of the names of all results, and the figure's suffix."""
    if command.out is not None:
        return result_stem(command.out)
    folder = run.results_folder(groups[0].policies[0], command.paths[0] if command.paths else None)
    return folder / _result_name(command, config, groups), ".png"


def result_stem(out: Path) -> tuple[Path, str]:
    """Return the path of results without suffix, and the figure's suffix, for the option --out.

    Raises ConfigError if the suffix is not supported. A suffix that `is_suffix` does not recognize is part of the name.
    """
    suffix = out.suffix.lower()
    if suffix in (".json", ".csv"):
        return out.with_suffix(""), ".png"
    figure_format(out)
    return (out.with_suffix(""), suffix) if suffix in FORMATS else (out, ".png")


def _own_stem(stem: Path, group: Group) -> Path:
    return stem.with_name(f"{stem.name}-{group.name}") if group.name else stem


def _result_name(command: EvaluateCommand, config: EvalConfig, groups: Sequence[Group]) -> str:
    whose = f"-{command.pretrained}" if command.pretrained else ""
    where = "-" + re.sub(r"[^\w.]+", "-", command.env) if command.env else ""
    name = f"evaluate{whose}{where}-{command.tasks}-{config.episodes}-episodes"
    name += f"-{config.repeats}-repeats" if config.repeats > 1 else ""
    name += f"-first-{config.tasks}-tasks" if config.tasks else ""
    name += f"-{config.expert_episodes}-expert" if config.expert_episodes else ""
    name += f"-quality-{config.expert_quality:g}" if config.expert_quality != 1 else ""
    name += f"-context-{config.context_limit}" if config.context_limit is not None else ""
    name += f"-change-{config.change_task_at}" if config.change_task_at else ""
    if command.group:
        return "-".join([name, *(["groups"] if len(groups) > 1 else [])])
    return name + (f"-{len(command.paths)}-runs" if len(command.paths) > 1 else "")
