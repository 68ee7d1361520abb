"""The Python API: `relic_jax.train`, `relic_jax.load_run`, `relic_jax.make_env`.

It runs the same code as the command line and writes the same files. Errors are ConfigErrors with one-line messages.
Signal handlers are installed in the main thread only, and only for the duration of a call.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from relic_jax import settings
from relic_jax.agent import Agent
from relic_jax.compilation_cache import with_cache
from relic_jax.config import ConfigError, EnvConfig, TrainConfig, WorkerConfig, from_json, to_json
from relic_jax.dashboards import WandBOptions
from relic_jax.environment.base import Environment, Split
from relic_jax.envs import registry
from relic_jax.evaluation import Report
from relic_jax.experiments import evaluation, folders, plots, presets, run, training
from relic_jax.experiments.arguments import find_env
from relic_jax.loading import LoadedPolicy, load_policy
from relic_jax.plotting import figure_format, write_figure


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run: its folder, and what can be done with its policy.

    `train` and `load_run` return one.
    """

    path: Path
    """The run folder. `docs/runs.md` lists its files."""
    trust: bool = False
    """Run the environment and the workers that the run's config names even if another user made the run."""

    @property
    def config(self) -> TrainConfig:
        """The run's config, read from its `config.json`."""
        return folders.read_config(self.path)

    def policy(self) -> LoadedPolicy:
        """Return the policy of the newest checkpoint."""
        return load_policy(self.path, trust=self.trust)

    def agent(self, **options: Any) -> Agent:
        """Return an agent that acts step by step with the policy of the newest checkpoint.

        Args:
            **options: See `LoadedPolicy.agent`, for example `batch`, `seed` and `greedy`.
        """
        return self.policy().agent(**options)

    @settings.with_standard
    @with_cache
    def evaluate(
        self,
        tasks: Split = "test",
        *,
        episodes: int | None = None,
        repeats: int | None = None,
        limit: int | None = None,
        expert_episodes: int = 0,
        expert_quality: float = 1.0,
        context_limit: int | None = None,
        change_task_at: int | None = None,
        env: str | None = None,
        out: str | Path | None = None,
    ) -> Report:
        """Evaluate the newest checkpoint as `relic-jax evaluate` does, and write its files.

        Args:
            tasks: The split to evaluate on: "test" (held-out tasks) or "train".
            episodes: Episodes per task, in one context. None: the run's setting.
            repeats: Trials per task. None: the run's setting.
            limit: Number of tasks, the first ones of the split. None: the run's setting.
            expert_episodes: First episodes of each trial in which the scripted expert acts.
            expert_quality: Share of the expert's steps that take its action; the others take random actions.
            context_limit: The number of last steps that each layer sees. 0: those of the current episode. None: all.
            change_task_at: Episode, counted from 1, from which each trial continues in another task. None: one task.
            env: Another environment with the same observations and actions. None: the run's.
            out: Files are written to OUT.json, OUT.csv and OUT.png. None: named after the options, in the run folder.

        Returns:
            The evaluation report. `report.to_json()` is the content of the JSON file.

        Raises:
            ConfigError: If an argument does not fit the run.
        """
        _check_choice("tasks", tasks, ("test", "train"))
        command = evaluation.EvaluateCommand(
            (self.path,),
            env=env,
            tasks=tasks,
            episodes=episodes,
            repeats=repeats,
            limit=limit,
            expert_episodes=expert_episodes,
            expert_quality=expert_quality,
            context_limit=context_limit,
            change_task_at=change_task_at,
            out=None if out is None else Path(out),
            trust=self.trust,
        )
        (report,) = evaluation.start(
            command, run.Overrides(env, given=frozenset() if env is None else frozenset({"env"}))
        )
        return report

    def plot(self, out: str | Path | None = None, *, training: bool = False) -> Figure:
        """Draw the in-context learning curve, or the training episodes if the run has not been evaluated.

        Does not use pyplot, so the matplotlib backend and open figures do not change.

        Args:
            out: A file that ends in .png, .pdf or .svg, to which the figure is also written.
            training: Draw the training episodes even if the run has been evaluated.

        Returns:
            The figure.

        Raises:
            ConfigError: If the run has nothing to draw, or if the file cannot be written.
        """
        draw, _ = plots.drawing([self.path], training)
        if out is not None:
            figure_format(Path(out))
            folders.check_writable(Path(out), "out")
        figure = draw()
        if out is not None:
            write_figure(figure, Path(out))
        return figure

    @with_cache
    def resume(self, *, extend_to: int | None = None, stop: threading.Event | None = None) -> Run:
        """Continue an interrupted run from its newest checkpoint, as `relic-jax train --resume` does.

        Args:
            extend_to: The new total of environment steps, also for a finished run. None: the run's total.
            stop: See `train`.

        Raises:
            ConfigError: If the run cannot be resumed.
        """
        config = self.config
        command = training.TrainCommand(config, resume=self.path, extend_to=extend_to, trust=self.trust)
        return _run(command, None, config, stop)


@settings.with_standard
@with_cache
def train(
    preset: str | TrainConfig,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    track: Iterable[Literal["tensorboard", "wandb"]] = (),
    wandb: WandBOptions | None = None,
    stop: threading.Event | None = None,
    **fields: Any,
) -> Run:
    """Train a policy, evaluate it on held-out tasks and draw its figures, as `relic-jax train` does.

    Progress is printed. Unlike the command line, training uses the devices that JAX has: one on a CPU, unless
    `relic_jax.rl.parallel.offer_cores` was called before.

    An interrupt (Ctrl-C, the stop button of a notebook) stops training after the current chunk, saves a checkpoint and
    raises KeyboardInterrupt. `load_run(path).resume()` continues the run.

    Args:
        preset: The name of a preset (`relic-jax presets` lists them) or a config.
        name: The name of the run folder. None: PRESET-seedN.
        runs: The folder that holds the run folders.
        track: Trackers to log to besides the run folder: "tensorboard", "wandb".
        wandb: Options of the tracker "wandb".
        stop: An event. When it is set, training stops after the current chunk, saves a checkpoint and returns. Use it
          to stop training in another thread.
        **fields: Fields of `TrainConfig` that differ from the preset, for example `total_steps=100_000`, `seed=1`,
          `ppo={"lr": 3e-4}` or `**{"ppo.lr": 3e-4}`.

    Returns:
        The run.

    Raises:
        ConfigError: If an argument or a field is invalid, or if the run folder exists.
        NonFiniteError: If a NaN or an infinity appears in training.
    """
    default = presets.get(preset).config if isinstance(preset, str) else preset
    if not isinstance(default, TrainConfig):
        raise ConfigError(f"preset is {default!r}; allowed: the name of a preset or a TrainConfig")
    for tracker in (track := tuple(track)):
        _check_choice("track", tracker, ("tensorboard", "wandb"))
    config = override(default, fields)
    options: dict[str, Any] = {"track": track, "wandb": wandb or WandBOptions()}
    command = training.TrainCommand(config, name=name, runs=Path(runs), **options)
    label = preset if isinstance(preset, str) else presets.name_of(config) or re.sub(r"[^\w.]+", "-", config.env.name)
    return _run(command, label, default, stop)


def load_run(path: str | Path, *, trust: bool = False) -> Run:
    """Return the run in a folder that `train` or the command line wrote.

    Args:
        path: The run folder.
        trust: Run the environment and the workers that the run's config names even if another user made the run. They
          can be any program.

    Raises:
        ConfigError: If the folder does not hold a run.
    """
    loaded = Run(Path(path), trust)
    _ = loaded.config
    return loaded


@settings.with_standard
def make_env(name: str, *, action_repeat: int = 1, **options: Any) -> Environment:
    """Return an environment by its name.

    Args:
        name: A name that `relic-jax envs` lists, or `python:MODULE:NAME` for a custom environment.
        action_repeat: Environment steps that each action lasts.
        **options: `horizon`, options of the environment's family and fields of `WorkerConfig`.

    Raises:
        ConfigError: If the name is unknown, or if the environment does not read an option.
    """
    names = {field.name for field in dataclasses.fields(WorkerConfig)}
    workers = {option: value for option, value in options.items() if option in names}
    env = {option: value for option, value in options.items() if option not in names}
    fields = {"env": {"name": name, **env}, "host": workers, "trial": {"action_repeat": action_repeat}}
    config = override(TrainConfig(), fields)
    run.check_workers(name, config.host, WorkerConfig())
    return run.env_of(config)


def override(config: TrainConfig, fields: Mapping[str, Any]) -> TrainConfig:
    """Return the config with other values of some fields.

    Args:
        config: The config.
        fields: Values by field. A name can be dotted ("ppo.lr"). A group of fields takes a mapping or a config.

    Raises:
        ConfigError: If a field is unknown, or if a value has the wrong type.
    """
    content = json.loads(to_json(config))
    for name, value in fields.items():
        if name == "env" and isinstance(value, str):  # options that the new environment has too stay set
            find_env(value)
            content["env"] = dataclasses.asdict(registry.renamed(config.env, value))
        else:
            _merge(content, name, value)
    env, known = content["env"], [field.name for field in dataclasses.fields(EnvConfig)]
    if isinstance(env, dict):
        moved = {option: env.pop(option) for option in list(env) if option not in known}
        env["options"] = {**env["options"], **moved}
    try:
        text = json.dumps(content, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}") from None
    return from_json(text)


def _merge(content: dict[str, Any], name: str, value: Any) -> None:
    """Set a field in a config's JSON."""
    head, _, rest = name.partition(".")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if rest:
        value = {rest: value}
    if isinstance(value, Mapping) and isinstance(content.get(head), dict):
        for key, part in value.items():
            _merge(content[head], str(key), part)
    else:
        content[head] = value


def _plain(value: Any) -> Any:
    """Return a path as text and a NumPy scalar as a number."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    raise TypeError(f"{value!r} is no value of a field")


def _check_choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field} is {value!r}; allowed: {', '.join(map(repr, allowed))}")


def _run(command: training.TrainCommand, label: str | None, default: TrainConfig, stop: threading.Event | None) -> Run:
    """Train. Returns early if `stop` is set, raises KeyboardInterrupt after a signal."""
    command, folder, resume = training.resolve(command, label, default, frozenset())
    try:
        training.start(command, folder, resume, stop)
    except training.Stopped as stopped:
        if stopped.exit_code:
            raise
    return Run(folder, trust=True)
