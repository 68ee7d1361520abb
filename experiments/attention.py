"""`relic-jax attention`: the share of attention on the sink, the current episode and each earlier episode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from relic_jax.config import ConfigError, EvalConfig, validate
from relic_jax.environment.base import Environment, Split
from relic_jax.evaluation.attention import AttentionShares, attention_shares
from relic_jax.experiments import folders, run
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.evaluation import result_stem
from relic_jax.files import write_atomically
from relic_jax.loading import LoadedPolicy
from relic_jax.plotting import COLORS, CellFigure, escaped, write_figure
from relic_jax.progress import Activity
from relic_jax.spaces import image_mask
from relic_jax.validation import require

KINDS = ("sink", "current episode", "earlier episodes")
TASKS = 20
"""Number of tasks, unless --limit is set."""


@dataclasses.dataclass(frozen=True)
class AttentionCommand:
    """Show where attention goes: the share of its mass on the sink, the current episode and each earlier episode."""

    path: tyro.conf.Positional[Path | None] = None
    """Run folder, checkpoint folder or exported folder."""
    pretrained: str | None = None
    """Name of a pretrained policy that is included, e.g. darkroom-dpt, instead of a path."""
    tasks: Literal["test", "train"] = "test"
    """Split of the tasks."""
    episodes: int | None = None
    """Episodes per task, in one context. Default: the run's setting."""
    limit: int = TASKS
    """Number of tasks, the first of the split, one trial each."""
    out: Path | None = None
    """Path of the results without suffix: OUT.json and OUT.png (.pdf or .svg if OUT ends so). Default: attention in the
    run folder; for an export, in the current folder."""
    trust: bool = False
    """Run the environment that the policy's config names, even if another user made the policy. It can be any
    program."""


def attention_main(arguments: Sequence[str]) -> None:
    """Run `relic-jax attention`."""
    command = parse(AttentionCommand, arguments, "relic-jax attention")
    paths = [] if command.path is None else [command.path]
    ((policy,), env) = run.in_environment(run.load(paths, command.pretrained, trust=command.trust), run.Overrides())
    stem, suffix = stem_of(command, policy, "attention")
    files = [stem.with_name(stem.name + end) for end in (".json", suffix)]
    for file in files:
        folders.check_writable(file, "out")
    with folders.locked_run(stem.parent):
        shares = _compute(command, policy, env)
        write(shares, files, policy, env, command.tasks)
    print("\n".join(describe(shares)))
    print("wrote " + ", ".join(map(str, files)))


def stem_of(command: AttentionCommand, policy: LoadedPolicy, name: str) -> tuple[Path, str]:
    """Return the path of the results without suffix, by default `name` in the run folder, and the figure's suffix."""
    if command.out is None:
        return run.results_folder(policy, command.path) / name, ".png"
    stem, suffix = result_stem(command.out)
    if not stem.name:
        raise ConfigError(f"out is '{command.out}'; allowed: the name of a file")
    return stem, suffix


def settings_of(command: AttentionCommand, policy: LoadedPolicy, env: Environment) -> EvalConfig:
    """Return the evaluation settings of a command. Raises ConfigError if they do not fit the policy."""
    require(command.limit > 0, "limit", command.limit, "more than 0")
    own = policy.config.eval
    episodes = own.episodes if command.episodes is None else command.episodes
    config = dataclasses.replace(own, episodes=episodes, tasks=command.limit, repeats=1)
    config = dataclasses.replace(config, expert_episodes=0, expert_quality=1.0, change_task_at=None)
    images = any(image_mask(env.observation_spec))
    validate(dataclasses.replace(policy.config, eval=config), horizon=env.horizon, images=images)
    return config


def _compute(command: AttentionCommand, policy: LoadedPolicy, env: Environment) -> AttentionShares:
    config = settings_of(command, policy, env)
    text = f"computing attention in {command.tasks} tasks"
    with Activity(text) as activity:
        return shares_of(policy, env, config, command.tasks, lambda fraction: activity.show(f"{text} {fraction:4.0%}"))


def shares_of(
    policy: LoadedPolicy, env: Environment, config: EvalConfig, split: Split, progress: Callable[[float], None]
) -> AttentionShares:
    """Compute the shares of a trained policy with its seed, see `attention_shares`."""
    return attention_shares(
        policy.policy,
        policy.params,
        env,
        config,
        split=split,
        seed=policy.config.seed,
        show_last_reward=policy.config.trial.show_last_reward,
        progress=progress,
    )


def write(shares: AttentionShares, files: Sequence[Path], policy: LoadedPolicy, env: Environment, split: Split) -> None:
    """Write the shares to a JSON file and a figure, `files`."""
    about = {"env": env.name, "split": split, "checkpoint": run.label(policy), **folders.origin()}
    write_atomically(files[0], run.as_json(to_json(shares) | about))
    write_figure(draw(shares, f"{env.name}, {split} split ({shares.tasks} tasks)"), files[1])


def to_json(shares: AttentionShares) -> dict[str, Any]:
    """Return plain values: `sink` [layers][heads][E] and `episodes` [layers][heads][E][E]."""
    content = {"tasks": shares.tasks, "sink": shares.sink.round(6).tolist()}
    return content | {"episodes": shares.episodes.round(6).tolist()}


def describe(shares: AttentionShares) -> list[str]:
    """Return the mean shares over layers and heads, early and late in a trial, as text."""
    last = shares.sink.shape[-1]
    lines = []
    for name, episode in dict.fromkeys((("early", min(2, last)), ("late", last))):
        values = (shares.sink, shares.current, shares.earlier)
        parts = [f"{kind} {x[..., episode - 1].mean():.1%}" for kind, x in zip(KINDS, values, strict=True)]
        lines.append(f"{name} (episode {episode}): " + ", ".join(parts))
    return lines


def draw(shares: AttentionShares, title: str) -> Figure:
    """Draw a map per layer, averaged over heads, and the shares of sink, current and earlier episodes."""
    layers, _, episodes = shares.sink.shape
    figure = CellFigure((4.2 * (layers + 1), 4.2))
    axes = np.atleast_1d(figure.subplots(1, layers + 1))
    maps = np.concatenate([shares.sink[..., None], shares.episodes], -1).mean(1)  # [layers, E, 1 + E]
    hidden = np.pad(~np.tri(episodes, dtype=bool), ((0, 0), (1, 0)))  # episodes that have not begun
    for axis, values in zip(axes[:-1], maps, strict=True):
        extent = (-0.5, episodes + 0.5, 0.5, episodes + 0.5)
        options = {"origin": "lower", "aspect": "auto", "vmin": 0, "vmax": maps.max(), "extent": extent}
        image = axis.imshow(np.ma.masked_array(values, hidden), interpolation="nearest", **options)
        axis.set(xlabel="episode attended to (0: the sink)", ylabel="current episode")
    for index, axis in enumerate(axes[:-1]):
        axis.set_title(f"layer {index + 1}", fontsize="medium")
    figure.colorbar(image, ax=axes[layers - 1], label="share of attention")
    number = np.arange(1, episodes + 1)
    for kind, values, color in zip(KINDS, (shares.sink, shares.current, shares.earlier), COLORS, strict=False):
        marker = "o" if episodes == 1 else None
        axes[-1].plot(number, values.mean((0, 1)), color=color, label=kind, marker=marker)
    axes[-1].set(xlabel="current episode", ylabel="share, mean over layers and heads", ylim=(-0.03, 1.03))
    axes[-1].legend(frameon=False)
    axes[-1].spines[["top", "right"]].set_visible(False)
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.yaxis.set_major_locator(MaxNLocator(integer=axis is not axes[-1], min_n_ticks=1))
    figure.suptitle(escaped(title))
    return figure
