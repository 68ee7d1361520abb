"""Contents of a run folder, and the evaluation that writes its results.

config.json    the whole configuration
origin.json    command, commit, versions and device it was started with
metrics.jsonl  one line per update, deterministic; timing.jsonl: seconds and steps per second
checkpoints/   the newest two
curve.*        the in-context curve on held-out tasks: JSON (with raw values), CSV, PNG
trial.gif      one held-out trial
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relic_jax import trust
from relic_jax.config import ConfigError, EnvConfig, EvalConfig, TrainConfig, WorkerConfig, check_fields, validate
from relic_jax.environment.base import Environment, Split
from relic_jax.environment.reference_agents import AgentEpisodes, play_reference_agents
from relic_jax.environment.reference_returns import reference_returns
from relic_jax.environment.repeat import repeated
from relic_jax.envs import registry
from relic_jax.envs.render import write_gif
from relic_jax.evaluation import Curves, Report, evaluated_tasks, in_context_curves, summarise, to_csv
from relic_jax.evaluation.searchers import describe_agents
from relic_jax.experiments.arguments import find_env, parse_env
from relic_jax.experiments.folders import origin
from relic_jax.files import write_atomically
from relic_jax.loading import SHIPPED, LoadedPolicy, is_export, load_policy, pretrained
from relic_jax.spaces import Spaces, differences, image_mask, spaces_of, spaces_to_json

GIF_FRAMES_PER_SECOND = 20.0


def make_env(env: EnvConfig, workers: WorkerConfig | None = None, action_repeat: int = 1) -> Environment:
    """Return the environment of a config. Raises ConfigError that names the field."""
    find_env(env.name)
    return repeated(registry.make(env, workers), action_repeat)


def check_workers(name: str, workers: WorkerConfig, default: WorkerConfig) -> None:
    """Raise ConfigError if `workers` differs from `default` and environment `name` has no worker processes."""
    if find_env(name).workers:
        return
    for field in fields(WorkerConfig):
        value, unchanged = getattr(workers, field.name), getattr(default, field.name)
        if value != unchanged:
            allowed = f"{unchanged!r}, env {name!r} has no worker processes"
            raise ConfigError(f"host.{field.name} is {value!r}; allowed: {allowed}")


def env_of(config: TrainConfig) -> Environment:
    """Return the environment of a run. Raises ConfigError if the config cannot work in any environment."""
    check_fields(config)
    return make_env(config.env, config.host, config.trial.action_repeat)


def spaces_of_config(config: TrainConfig) -> Spaces:
    """Return the spaces of a config's environment, which is created for it. Raises as `make_env` does."""
    return spaces_of(make_env(config.env, config.host, config.trial.action_repeat))


def given_fields(arguments: Sequence[str]) -> frozenset[str]:
    """Return the names of the fields that options set: `env` for --env NAME, `host.python` for --host.python=PATH."""
    options = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return frozenset(option.removeprefix("--").replace("-", "_") for option in options)


@dataclass(frozen=True)
class Overrides:
    """What a command line sets in place of a policy's own environment and workers.

    Attributes:
        name: The environment, with its own time limit. None: the policy's.
        options: Arguments `--env.OPTION VALUE`.
        workers: Worker options, of which those in `given` count.
        given: Names of the fields that the command line sets, see `given_fields`.
        prog: The command, for errors.
    """

    name: str | None = None
    options: Sequence[str] = ()
    workers: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    given: frozenset[str] = frozenset()
    prog: str = "relic-jax"

    def apply(self, policy: LoadedPolicy) -> TrainConfig:
        """Return the policy's config with these overrides."""
        config = policy.config
        name = self.name or config.env.name
        check_workers(name, self.workers, WorkerConfig())
        env = config.env if self.name is None else replace(registry.renamed(config.env, name), horizon=None)
        env, own = parse_env(env, self.options, self.prog), config.host
        if not policy.own:  # how many processes this machine starts is not for a file to decide
            own = replace(own, workers=min(own.workers, max(os.cpu_count() or 1, WorkerConfig().workers)))
        names = [field.name for field in fields(WorkerConfig) if f"host.{field.name}" in self.given]
        own = replace(own, **{field: getattr(self.workers, field) for field in names})
        return replace(config, env=env, host=own)


def in_environment(policies: Sequence[LoadedPolicy], overrides: Overrides) -> tuple[list[LoadedPolicy], Environment]:
    """Return policies that can be pooled, set to act in one environment, and that environment.

    Raises ConfigError if a policy is not the user's own and names what would be run, or does not fit the environment.
    """
    changed = [replace(policy, config=overrides.apply(policy)) for policy in policies]
    for policy in changed:
        trust.check(policy.config, policy.path, own=policy.own, given=overrides.given)
    env = env_of(changed[0].config)
    for policy in changed:
        check_fits(policy, env)
        config = policy.config
        validate(config, horizon=env.horizon, images=any(image_mask(env.observation_spec)))
    return changed, env


def check_fits(policy: LoadedPolicy, env: Environment) -> None:
    """Raise ConfigError if a policy cannot act in an environment.

    Observations and actions must have the policy's shapes and dtypes, and observations must lie in its range.
    """
    spaces, field = spaces_of(env), f"env is {policy.config.env.name!r}"
    given, allowed = (
        {part: spaces_to_json(x)[part] for part in ("observation", "action")} for x in (spaces, policy.spaces)
    )
    if given != allowed:
        own, wanted = differences(spaces, policy.spaces)
        raise ConfigError(f"{field}, whose spaces are {own}; allowed: the policy's, {wanted}")
    bounds, limit = (np.array([x.low, x.high], float) for x in (spaces, policy.spaces))
    if bounds.shape != limit.shape or (bounds[0] < limit[0]).any() or (bounds[1] > limit[1]).any():
        ranges = f"{_numbers(bounds[0])} … {_numbers(bounds[1])}"
        allowed_range = f"{_numbers(limit[0])} … {_numbers(limit[1])}"
        raise ConfigError(
            f"{field}, whose observations range over {ranges}; allowed: within the policy's, {allowed_range}"
        )


def _numbers(values: np.ndarray) -> str:
    text = ", ".join(f"{value:g}" for value in values[:8])
    return f"[{text}{', …' if len(values) > 8 else ''}]"


def load(paths: Sequence[Path], name: str | None, *, trust: bool = False) -> list[LoadedPolicy]:
    """Return the policies of runs, checkpoints or exports, or the pretrained one called `name`.

    Args:
        paths: Folders of the policies. Empty if `name` is set.
        name: A pretrained policy, or None.
        trust: Treat the policies as the user's own.

    Returns:
        The policies.

    Raises:
        ConfigError: A policy cannot be loaded, or both or neither of `paths` and `name` are set.
    """
    if name is not None and paths:
        raise ConfigError(f"pretrained is {name!r}; allowed: None where paths are given")
    if name is None and not paths:
        raise ConfigError("paths is empty; allowed: a run, checkpoint or exported folder, or --pretrained NAME")
    found = (
        [pretrained(name)]
        if name is not None
        else [load_policy(path, trust=trust, spaces_of=spaces_of_config) for path in paths]
    )
    return [replace(policy, own=policy.own or trust) for policy in found]


def results_folder(trained: LoadedPolicy, path: Path | None) -> Path:
    """Return the default folder of results: the run or checkpoint; the current folder for an export."""
    return (
        path if path is not None and path in (trained.path, *trained.path.parents) and not is_export(path) else Path()
    )


def label(trained: LoadedPolicy) -> str:
    """Return the name of a policy in results: its path, or the name of a pretrained one."""
    return f"pretrained {trained.path.name}" if trained.path.parent == SHIPPED else str(trained.path)


def evaluate_policies(
    policies: Sequence[LoadedPolicy],
    config: EvalConfig | None,
    split: Split,
    progress: Callable[[float], None],
    env: Environment | None = None,
    devices: int = 1,
) -> tuple[Report, list[Curves], Environment]:
    """Evaluate the policies of one curve, with their seeds pooled. They share a compiled program.

    Args:
        policies: The policies.
        config: Evaluation settings. None: those of the first policy.
        split: Split of the tasks.
        progress: Called with the fraction that is complete.
        env: The environment. None: that of the first policy.
        devices: Number of this process's devices that share the trials.

    Returns:
        (the report, the curve of each policy, the environment).

    Raises:
        ConfigError: The environment has to be made, and the policy is not the user's own and names a program to run.
    """
    first = policies[0].config
    if env is None:
        trust.check(first, policies[0].path, own=policies[0].own)
        env = env_of(first)
    evaluation = config or first.eval
    curves = [
        in_context_curves(
            policies[0].policy,  # of the same architecture: `pooling.check_pool`
            trained.params,
            env,
            evaluation,
            split=split,
            seed=trained.config.seed,
            show_last_reward=trained.config.trial.show_last_reward,
            progress=_share(progress, index, len(policies)),
            devices=devices,
        )
        for index, trained in enumerate(policies)
    ]
    provenance = {
        "checkpoints": [label(trained) for trained in policies],
        "training_seeds": [trained.config.seed for trained in policies],
        "training": [trained.training for trained in policies],
        **origin(),
    }
    references = reference_means(env, split, evaluation.tasks)
    agents = agent_episodes(env, split, evaluation)
    report = summarise(env, split, evaluation, curves, references, provenance, agents)
    return replace(report, env_options=registry.changed_options(first.env)), curves, env


def _share(progress: Callable[[float], None], index: int, count: int) -> Callable[[float], None]:
    return lambda fraction: progress((index + fraction) / count)


def reference_means(env: Environment, split: Split, limit: int | None = None) -> dict[str, float | None]:
    """Compute the mean returns of random actions and of the expert on a split, or on its `limit` first tasks."""
    return reference_returns(env, split, limit=limit).means()


def agent_episodes(env: Environment, split: Split, config: EvalConfig) -> dict[str, AgentEpisodes]:
    """Play the environment's reference agents in the trials of an evaluation. Empty if a trial changes its task."""
    if not env.reference_agents or config.change_task_at is not None:
        return {}
    tasks = jax.tree.map(lambda x: np.repeat(x, config.repeats, axis=0), evaluated_tasks(env, split, config))
    return play_reference_agents(env, tasks, config.episodes)


def result_files(stem: Path, figure: str = ".png") -> list[Path]:
    """STEM.json, STEM.csv and the figure: STEM.png, or another suffix."""
    return [stem.with_name(stem.name + suffix) for suffix in (".json", ".csv", figure)]


def write_results(stem: Path, report: Report, label: str, figure: str = ".png") -> list[Path]:
    """Write `result_files`, each atomically. figure: a suffix that `plotting.figure_format` supports."""
    from relic_jax.plotting import plot_curves  # importing matplotlib takes half a second

    files = result_files(stem, figure)
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(files[0], as_json(report.to_json()))
    write_atomically(files[1], to_csv(report))
    plot_curves([report], [label], files[2])
    return files


def as_json(summary: dict[str, Any]) -> str:
    """Return JSON text with each list of numbers on one line."""
    indented = json.dumps(summary, indent=1) + "\n"  # line breaks are between values only, never in a string
    return re.sub(r'\[\n([^][{}"]*)\]', lambda numbers: f"[{' '.join(numbers[1].split())}]", indented)


def write_trial(path: Path, env: Environment, curves: Curves) -> Path | None:
    """Write a GIF of one trial; returns None if the environment cannot be drawn."""
    frames = env.render_trial(curves.trial)
    if frames is None:
        return None
    write_gif(path, frames, GIF_FRAMES_PER_SECOND)
    return path


def describe_result(report: Report) -> list[str]:
    """Return the results in a few lines of text, beside the reference returns."""
    mean, first = report.returns.mean, report.expert_episodes
    later, optimal = mean[first + 1 :], report.reference_returns["optimal"]
    tasks, digits = f"{report.tasks} {'held-out' if report.split == 'test' else 'training'} tasks", report.digits
    tasks += f" ({report.env_text}, split {report.split_hash})"
    parts = [f"{tasks}: episode {first + 1} returns {mean[first]:.{digits}f}"]
    if later:
        reached = sum(later) / len(later)
        share = f" = {reached / optimal:.1%} of optimal {optimal:.{digits}f}" if optimal else ""
        parts.append(f"episodes {first + 2}–{len(mean)} return {reached:.{digits}f}{share}")
    parts.append(f"random {report.reference_returns['random']:.{digits}f}")
    lines = [", ".join(parts)]
    rates = [("success", report.success, ".0%"), *((name, x, ".2f") for name, x in report.metrics.items())]
    for name, curve, form in rates:
        values = curve.mean
        last = f" in episode {first + 1}, {values[-1]:{form}} in episode {len(values)}" if later else ""
        lines.append(f"{name}: {values[first]:{form}}{last}")
    if later and report.gain is not None:
        gain, low, high = (getattr(report.gain, part)[0] for part in ("mean", "low", "high"))
        interval = f"95% [{low:.{digits}f}, {high:.{digits}f}]"
        lines.append(f"gain from episode {first + 1} to {len(mean)}: {gain:+.{digits}f}, {interval}")
    return lines + describe_agents(report)
