"""The command `relic-jax play`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from relic_jax.config import ConfigError, WorkerConfig
from relic_jax.evaluation import Curves
from relic_jax.experiments import folders, play, run
from relic_jax.experiments.arguments import parse, split_env_options, with_current_names
from relic_jax.experiments.evaluation import QUICK_EPISODES
from relic_jax.plotting import is_suffix


@dataclasses.dataclass(frozen=True)
class PlayCommand:
    """Make a GIF of a trained policy in one task, or open a window in which you act (--human)."""

    path: tyro.conf.Positional[Path | None] = None
    """Run folder, checkpoint folder or exported folder."""
    pretrained: str | None = None
    """Name of a pretrained policy that is included, e.g. darkroom-dpt, instead of a path. Plays 10 episodes unless
    --episodes is set."""
    env: str | None = None
    """Another environment with the same observations and actions; --env.OPTION sets its options. Default: the
    policy's."""
    task: int = 0
    """Index of the task in its split."""
    tasks: Literal["test", "train"] = "test"
    """Split of the tasks."""
    episodes: int | None = None
    """Episodes in one context. Default: the run's setting."""
    out: Path | None = None
    """The GIF. Default: play-SPLIT-TASK.gif in the run folder; for an export, play-NAME-SPLIT-TASK.gif in the current
    folder."""
    human: bool = False
    """Open a window and act with the keys 0, 1, 2, … Needs a display and Python's tkinter."""
    trust: bool = False
    """Run the environment and the workers that the policy's config names, even if another user made the policy. They
    can be any program."""
    host: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    """Worker processes, for environments that run in them. Default: the run's settings."""


def play_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax play`."""
    arguments = with_current_names(arguments)
    options, others = split_env_options(arguments)
    command = parse(PlayCommand, others, "relic-jax play")
    policies = run.load([] if command.path is None else [command.path], command.pretrained, trust=command.trust)
    given = run.given_fields(arguments)
    overrides = run.Overrides(command.env, options, command.host, given, "relic-jax play")
    (trained,), env = run.in_environment(policies, overrides)
    if command.human:
        _check_human(command)
        play.play_interactively(env, command.tasks, command.task)
        return
    if command.episodes is not None and command.episodes <= 0:
        raise ConfigError(f"episodes is {command.episodes}; allowed: more than 0")
    quick = min(trained.config.eval.episodes, QUICK_EPISODES) if command.pretrained is not None else None
    folder = run.results_folder(trained, command.path)
    name = "" if folder == command.path else f"-{trained.path.name}"
    out = command.out or folder / f"play{name}-{command.tasks}-{command.task}.gif"
    if out.suffix.lower() != ".gif" and is_suffix(out.suffix):
        raise ConfigError(f"out is '{out}'; allowed: a file that ends in .gif")
    folders.check_writable(out, "out")
    curves = play.record(trained, env, out, command.tasks, command.task, command.episodes or quick)
    print("\n".join(_by_episode(curves)))
    print(f"wrote {out}")


def _by_episode(curves: Curves) -> list[str]:
    """Return lines with the return, the success and, if the environment measures them, the steps of each episode."""
    found = {"return": [f"{x:.1f}" for x in curves.returns[0]]}
    if "steps" in curves.metrics:
        found["steps"] = [f"{x:.0f}" for x in curves.metrics["steps"][0]]
    found["success"] = ["yes" if x else "no" for x in curves.successes[0]]
    return [f"{name} by episode: {' '.join(values)}" for name, values in found.items()]


def _check_human(command: PlayCommand) -> None:
    """Raise ConfigError if an option is set that --human does not read."""
    for field in ("out", "episodes"):
        if getattr(command, field) is not None:
            raise ConfigError(f"{field} is {str(getattr(command, field))!r}; allowed: None with --human")
