"""`relic-jax difference`: paired differences between in-context episodes, or between two evaluations, with intervals.

Both sides are evaluated on the same tasks, so the difficulty of a task cancels. The interval of a paired difference is
usually narrower than the intervals of the two means suggest.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from relic_jax.config import ConfigError
from relic_jax.evaluation import aggregates
from relic_jax.evaluation.aggregates import Interval
from relic_jax.evaluation.report import Report, agree
from relic_jax.experiments.arguments import parse
from relic_jax.experiments.compare.results import CURVE, read_report
from relic_jax.validation import require

SAME = ("env", "split", "split_hash", "env_options", "tasks", "repeats")
"""Fields in which two results must agree (`report.agree`)."""


@dataclasses.dataclass(frozen=True)
class DifferenceCommand:
    """Paired difference between episodes of an evaluation, or between two evaluations of the same tasks."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """One or two evaluated runs, or JSON results of relic-jax evaluate. The second is subtracted from the first."""
    metric: str = "return"
    """return, success, or a metric of the environment, e.g. steps or spl."""
    episodes: str | None = None
    """Episodes that are averaged, counted from 1: FIRST-LAST, or one number. Default: all after the policy's first."""
    against: str | None = None
    """Episodes that are subtracted. Default: the policy's first with one result, those of --episodes with two."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a difference.

    Attributes:
        name: The result and its episodes, e.g. `curve.json, episodes 2-10`.
        values: float64 [seeds, tasks, repeats · selected episodes], the metric.
        policies: The checkpoints that were evaluated, in the order of seeds.
    """

    name: str
    values: np.ndarray
    policies: object

    @property
    def by_task(self) -> np.ndarray:
        """Means over the episodes of a task, float64 [seeds, tasks]."""
        return self.values.mean(-1)


def main(arguments: Sequence[str]) -> None:
    """Run `relic-jax difference`."""
    command = parse(DifferenceCommand, arguments, "relic-jax difference")
    if not 1 <= len(command.paths) <= 2:
        raise ConfigError(f"paths are {len(command.paths)} files or folders; allowed: 1 or 2 evaluations")
    paths = [path / CURVE if path.is_dir() else path for path in command.paths]
    reports = [_read(path) for path in paths]
    last = reports[-1]
    for name in SAME:
        own, other = getattr(last, name), getattr(reports[0], name)
        require(agree(name, own, other), f"{name} of '{paths[-1]}'", own, f"{other!r}, as in '{paths[0]}'")
    first, end = max(r.expert_episodes for r in reports) + 1, min(r.episodes for r in reports)
    episodes = command.episodes or f"{min(first + 1, end)}-{end}"
    against = command.against or (episodes if len(reports) == 2 else str(first))
    left = _side(paths[0], reports[0], command.metric, episodes, "episodes")
    right = _side(paths[-1], last, command.metric, against, "against")
    print("\n".join(describe(command.metric, reports[0], left, right)))


def difference(left: Side, right: Side) -> Interval:
    """Return the mean of left less that of right, with its 95% bootstrap interval over seeds and tasks.

    Tasks are always paired. Seeds are paired if both sides are of the same policies, and drawn separately otherwise.
    """
    if left.policies == right.policies and len(left.values) == len(right.values):
        return aggregates.interval(aggregates.mean, left.by_task - right.by_task)
    return aggregates.interval(lambda x, y: aggregates.mean(x) - aggregates.mean(y), left.by_task, right.by_task)


def describe(metric: str, report: Report, left: Side, right: Side) -> list[str]:
    """Return the lines that the command prints: both sides, with their means by seed, and their difference."""
    seeds = " and ".join(str(n) for n in sorted({len(left.values), len(right.values)}))
    lines = [f"{metric} in {report.tasks} tasks of {report.env_text} (split {report.split_hash}), seeds: {seeds}"]
    for side in (left, right):
        median, upper = np.quantile(side.values, (0.5, 0.9))
        mean = _text(aggregates.interval(aggregates.mean, side.by_task))
        lines.append(f"{side.name}: {mean}, median {median:.4g}, 90th percentile {upper:.4g}")
        if len(side.values) > 1:
            lines.append(f"  by seed: {', '.join(f'{x:.4g}' for x in side.by_task.mean(1))}")
    return [*lines, f"difference: {_text(difference(left, right), '+')}"]


def _text(interval: Interval, sign: str = "") -> str:
    value, low, high = interval
    return f"{value:{sign}.4g}, 95% [{low:.4g}, {high:.4g}]"


def _read(path: Path) -> Report:
    """Read a result. Raises ConfigError if it is none, or has no raw values."""
    report = read_report(path)
    if report.raw_returns is None:
        allowed = "a result with raw values, by: relic-jax evaluate RUN"
        raise ConfigError(f"paths: '{path}' has no raw values (an early version wrote it); allowed: {allowed}")
    return report


def _side(path: Path, report: Report, metric: str, episodes: str, field: str) -> Side:
    """Return the values of some episodes. Raises ConfigError if the result does not have the metric or the episodes."""
    kinds = {**(report.raw_metrics or {}), "return": report.raw_returns, "success": report.raw_successes}
    if metric not in kinds:
        raise ConfigError(f"metric is {metric!r}; allowed for '{path}': {', '.join(kinds)}")
    first, last = _range(episodes, field, report.episodes)
    try:
        raw = np.asarray(kinds[metric], np.float64).reshape(report.seeds, report.tasks, report.repeats, report.episodes)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"paths: '{path}' has damaged values of {metric} ({error})") from None
    values = raw[..., first - 1 : last].reshape(report.seeds, report.tasks, -1)
    name = f"episode {first}" if first == last else f"episodes {first}-{last}"
    return Side(f"{path}, {name}", values, report.provenance.get("checkpoints"))


def _range(text: str, field: str, episodes: int) -> tuple[int, int]:
    """Parse `FIRST-LAST` or one number. Raises ConfigError unless 1 ≤ FIRST ≤ LAST ≤ episodes."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    require(1 <= first <= last <= episodes, field, text, f"N or FIRST-LAST, from 1 to {episodes}")
    return first, last
