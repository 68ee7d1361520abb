"""`relic-jax sightings`: whether attention reads earlier steps at which the target kind was in view."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relic_jax.environment.base import Environment
from relic_jax.evaluation.sightings import (
    CLASSES,
    Sightings,
    Trial,
    first_asked,
    play_trials,
    sightings,
    steps_read,
    uniform_mass,
)
from relic_jax.experiments import folders, run
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.attention import AttentionCommand, settings_of, stem_of
from relic_jax.experiments.sightings_figure import Panel, draw
from relic_jax.files import write_atomically
from relic_jax.loading import LoadedPolicy
from relic_jax.plotting import write_figure
from relic_jax.progress import Activity
from relic_jax.validation import require

PANELS = 6
"""Largest number of episodes that are drawn by default."""


@dataclasses.dataclass(frozen=True)
class SightingsCommand(AttentionCommand):
    """Measure the attention to earlier steps at which the target kind was in view, and draw one trial."""

    task: int = 0
    """Index of the task whose trial is drawn, below --limit."""
    panels: tuple[int, ...] = ()
    """Episodes to draw, counted from 1. Default: the first one, and the next five with recalling steps."""
    out: Path | None = None
    """Path of the results without suffix: OUT.json and OUT.png (.pdf or .svg if OUT ends so). Default: sightings in the
    run folder; for an export, in the current folder."""


def sightings_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax sightings`."""
    command = parse(SightingsCommand, arguments, "relic-jax sightings")
    paths = [] if command.path is None else [command.path]
    ((policy,), env) = run.in_environment(run.load(paths, command.pretrained, trust=command.trust), run.Overrides())
    config = settings_of(command, policy, env)
    require(0 <= command.task < command.limit, "task", command.task, f"0 … {command.limit - 1}, below --limit")
    for episode in command.panels:
        require(1 <= episode <= config.episodes, "panels", episode, f"1 … {config.episodes}")
    stem, suffix = stem_of(command, policy, "sightings")
    files = [stem.with_name(stem.name + end) for end in (".json", suffix)]
    for file in files:
        folders.check_writable(file, "out")
    with folders.locked_run(stem.parent):
        text = f"computing attention in {command.tasks} tasks"
        with Activity(text) as activity:
            trials = play_trials(
                policy.policy,
                policy.params,
                env,
                config,
                split=command.tasks,
                seed=policy.config.seed,
                show_last_reward=policy.config.trial.show_last_reward,
            )
            require(command.task < len(trials), "task", command.task, f"0 … {len(trials) - 1}")
            found = sightings(
                policy.policy, policy.params, trials, lambda fraction: activity.show(f"{text} {fraction:4.0%}")
            )
            passing = in_passing(policy, trials)
            panels = panels_of(policy, trials[command.task], found.strongest, command.panels)
        _write(files, found, passing, panels, command, policy, env)
    print("\n".join(describe(found) + describe_passing(passing, found.strongest)))
    print("wrote " + ", ".join(map(str, files)))


def in_passing(policy: LoadedPolicy, trials: Sequence[Trial]) -> Sightings | None:
    """Return the attention of the recalling steps whose kind no earlier episode asked for. None without such steps."""
    masks = [trial.recalling & first_asked(trial.map, trial.episode) for trial in trials]
    if not any(mask.any() for mask in masks):
        return None
    chosen = [dataclasses.replace(trial, recalling=mask) for trial, mask in zip(trials, masks, strict=True)]
    return sightings(policy.policy, policy.params, chosen)


def panels_of(policy: LoadedPolicy, trial: Trial, head: tuple[int, int], episodes: Sequence[int]) -> list[Panel]:
    """Return the panels of a trial, with what one head reads.

    Args:
        policy: The policy.
        trial: The trial.
        head: (layer, head).
        episodes: The episodes to draw, counted from 1. Empty: the first, and the next ones with recalling steps.
    """
    indices = [episode - 1 for episode in episodes]
    if not indices:
        recalling = np.unique(trial.episode[trial.recalling])
        indices = [0, *map(int, recalling[recalling > 0])][:PANELS]
    weights = steps_read(policy.policy, policy.params, trial, indices)[:, head[0], head[1]]
    panels = []
    for index, weight in zip(indices, weights, strict=True):
        chosen = dataclasses.replace(trial, recalling=trial.recalling & (trial.episode == index))
        uniform = float(uniform_mass(chosen)[0]) if chosen.recalling.any() else 0.0
        panels.append(Panel(trial, index, weight, uniform))
    return panels


def _write(
    files: Sequence[Path],
    found: Sightings,
    passing: Sightings | None,
    panels: Sequence[Panel],
    command: SightingsCommand,
    policy: LoadedPolicy,
    env: Environment,
) -> None:
    """Write the JSON file and the figure."""
    about = {"env": env.name, "split": command.tasks, "checkpoint": run.label(policy), **folders.origin()}
    layer, head = found.strongest
    drawn = {"task": command.task, "layer": layer + 1, "head": head + 1, "panels": [x.to_json() for x in panels]}
    parts = {"in_passing": None if passing is None else to_json(passing), "drawn": drawn}
    write_atomically(files[0], run.as_json(about | to_json(found) | parts))
    title = f"{env.name}, {command.tasks} task {command.task}: what layer {layer + 1}, head {head + 1} reads"
    write_figure(draw(panels, title), files[1])


def to_json(found: Sightings) -> dict[str, Any]:
    """Return plain values: means over trials, ratios with intervals, and the values of each trial."""
    ratio, low, high = (x.round(4) for x in found.ratio())
    heads = []
    for layer, head in np.ndindex(found.mass.shape[1:3]):
        content: dict[str, Any] = {"layer": layer + 1, "head": head + 1}
        for index, name in enumerate(CLASSES):
            mean = round(float(found.mass[:, layer, head, index].mean()), 6)
            content[name] = {"mass": mean}
            if name != "sink" and np.isfinite(ratio[layer, head, index]):
                ends = [float(low[layer, head, index]), float(high[layer, head, index])]
                content[name] |= {"times_uniform": float(ratio[layer, head, index]), "interval": ends}
        heads.append(content)
    by_trial = {"task": found.tasks.tolist(), "recalling_steps": found.steps.tolist()}
    by_trial["uniform"] = found.uniform[:, 0].round(5).tolist()
    by_trial["asked"] = np.moveaxis(found.mass[..., 0], 0, -1).round(5).tolist()
    uniform = dict(zip(CLASSES[:3], found.uniform[:, :3].mean(0).round(6).tolist(), strict=True))
    counts = {"trials": found.played, "recalling_trials": len(found.steps), "recalling_steps": int(found.steps.sum())}
    return {**counts, "uniform": uniform, "heads": heads, "by_trial": by_trial}


def describe(found: Sightings) -> list[str]:
    """Return the mass on earlier sightings by layer and head, and the other classes, as text."""
    ratio, low, high = (x[..., 0] for x in found.ratio())
    mean, uniform = found.mass.mean(0), found.uniform.mean(0)
    count = f"{found.steps.sum()} recalling steps of {len(found.steps)} trials"
    lines = [f"{count}: uniform attention would put {uniform[0]:.1%} on earlier sightings of the target kind"]
    for layer, head in np.ndindex(mean.shape[:2]):
        asked, other, nothing, sink = mean[layer, head]
        interval = f"[{low[layer, head]:.1f}, {high[layer, head]:.1f}]"
        lines.append(
            f"layer {layer + 1}, head {head + 1}: {asked:.1%} on them, {ratio[layer, head]:.1f} {interval} times as "
            f"much; other kinds in view {other:.1%}, nothing in view {nothing:.1%}, sink {sink:.1%}"
        )
    return lines


def describe_passing(passing: Sightings | None, head: tuple[int, int]) -> list[str]:
    """Return what (layer, head) reads of kinds that no earlier episode asked for, as text. Empty without such steps."""
    if passing is None:
        return []
    mass, uniform = passing.mass[:, head[0], head[1], 0].mean(), passing.uniform[:, 0].mean()
    count = f"{passing.steps.sum()} recalling steps for kinds that no earlier episode asked for"
    return [f"{count}: {mass:.1%} in layer {head[0] + 1}, head {head[1] + 1} (uniform {uniform:.1%})"]
