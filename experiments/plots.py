"""`relic-jax plot`: several curves in one figure."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure

from relic_jax.config import ConfigError
from relic_jax.evaluation import Report
from relic_jax.evaluation.report import agree
from relic_jax.experiments import folders
from relic_jax.experiments.arguments import parse
from relic_jax.metrics import EVALUATIONS, read_evaluations, read_lines
from relic_jax.plotting import TrainingCurve, curves_figure, figure_format, training_figure, write_figure
from relic_jax.progress import Activity

PARTS = 100
"""Maximum number of points of a training curve."""


@dataclasses.dataclass(frozen=True)
class PlotCommand:
    """Draw several in-context curves in one figure, or the training episodes of runs that were not evaluated yet."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or result files (curve.json, or a JSON file of relic-jax evaluate)."""
    out: Path = Path("curves.png")
    """The figure, a file that ends in .png, .pdf or .svg."""
    training: bool = False
    """Draw the training episodes (metrics.jsonl of run folders) even if the runs were evaluated."""
    learning: bool = False
    """Draw the learning curve: the evaluations on held-out tasks during training (evaluations.jsonl, made with
    --eval.every)."""


def plot_main(arguments: Sequence[str]) -> None:
    """`relic-jax plot`."""
    command = parse(PlotCommand, arguments, "relic-jax plot")
    if not command.paths:
        raise ConfigError("paths is empty; allowed: run folders or curve.json files")
    figure_format(command.out)
    if command.learning and command.training:
        raise ConfigError("learning is True; allowed: False with --training")
    draw, training = learning_drawing(command.paths) if command.learning else drawing(command.paths, command.training)
    folders.check_writable(command.out, "out")
    with Activity(f"drawing {command.out}"):
        write_figure(draw(), command.out)
    if training and not (command.training or command.learning):
        remedy = _remedy(command.paths[0])
        print(f"no run has an in-context curve yet, so training episodes are drawn; for the curve: {remedy}")
    print(f"wrote {command.out}")


def drawing(paths: Sequence[Path], training: bool) -> tuple[Callable[[], Figure], bool]:
    """Read the curves at `paths`.

    Args:
        paths: Run folders or result files.
        training: Draw training episodes even if the runs have in-context curves.

    Returns:
        (a function that draws the figure, whether it shows training episodes).

    Raises:
        ConfigError: If a path has nothing to draw, or if the curves are of different tasks.
    """
    if training or all(_has_only_metrics(path) for path in paths):
        return functools.partial(training_figure, [training_curve(path) for path in paths], labels(paths)), True
    reports = [read_report(path) for path in paths]
    _check_comparable(paths, reports)
    return functools.partial(curves_figure, reports, labels(paths)), False


def learning_drawing(paths: Sequence[Path]) -> tuple[Callable[[], Figure], bool]:
    """Return what `drawing` returns, for evaluations during training. Raises ConfigError if a run has none."""
    curves = [learning_curve(path) for path in paths]
    return functools.partial(training_figure, curves, labels(paths), "later episode of held-out tasks"), True


def learning_curve(path: Path) -> TrainingCurve:
    """Return the mean return of later episodes and the success rate of a run's evaluations during training.

    Raises ConfigError if there are none.
    """
    found = read_evaluations(path / EVALUATIONS) if path.is_dir() else []
    if not found:
        raise ConfigError(f"paths: '{path}' has no {EVALUATIONS}; allowed: a run that was trained with --eval.every")
    several = found[0]["later"] is not None
    success = [np.mean(x["success"][1:] if several else x["success"]) for x in found]
    returns = [x["later"] if several else x["first"] for x in found]
    return TrainingCurve([x["env_steps"] for x in found], returns, success, _env_name(path))


SAME = ("env", "split_hash", "env_options")
"""Fields in which the reports of one figure must agree."""


def _check_comparable(paths: Sequence[Path], reports: Sequence[Report]) -> None:
    """Raise ConfigError if curves are of different tasks."""
    first = reports[0]
    for path, report in zip(paths, reports, strict=True):
        if not all(agree(name, getattr(report, name), getattr(first, name)) for name in SAME):
            allowed = f"curves of one env and split in one figure ({first.env_text}, {first.split})"
            raise ConfigError(f"paths: '{path}' is of {report.env_text}, {report.split}; allowed: {allowed}")


def labels(paths: Sequence[Path]) -> list[str]:
    """Return a name for each curve: that of its folder or file, with the parent folder if names are equal."""
    paths = [path.resolve() if path.name in ("", "..") else path for path in paths]
    names = [path.name if path.is_dir() else path.stem for path in paths]
    return [
        path.resolve().parent.name if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)
    ]


def read_report(path: Path) -> Report:
    """Return the report in a curve file, in a run folder's `curve.json`, or else in its only evaluation.

    Raises ConfigError if there is none; the error contains the command that makes one.
    """
    report = _report(_result_file(path))
    if report is None:
        allowed = "a curve.json, or a run folder that has one"
        hint = f" (to make one: {_remedy(path)})" if (path / "checkpoints").is_dir() else ""
        raise ConfigError(f"paths: '{path}' holds no curve; allowed: {allowed}{hint}")
    return report


def _result_file(path: Path) -> Path:
    """Return the result file of a path. Raises ConfigError if a folder has several evaluations and no curve.json."""
    if not path.is_dir() or (path / "curve.json").exists():
        return path / "curve.json" if path.is_dir() else path
    found = sorted(file for file in path.glob("*.json") if _report(file) is not None)
    if len(found) > 1:
        names = ", ".join(str(file) for file in found)
        raise ConfigError(f"paths: '{path}' holds several evaluations and no curve.json; allowed: one of {names}")
    return found[0] if found else path / "curve.json"


def _report(file: Path) -> Report | None:
    """Return the report in a file, or None if there is none."""
    try:
        return Report.from_json(json.loads(file.read_bytes())) if file.is_file() else None
    except (OSError, ValueError, RecursionError):  # ConfigError is a ValueError
        return None


def _has_only_metrics(path: Path) -> bool:
    """Whether a path is a run folder with metrics and without any evaluation."""
    return path.is_dir() and (path / "metrics.jsonl").is_file() and not _result_file(path).exists()


def _remedy(path: Path) -> str:
    return f"relic-jax evaluate {path}"


def training_curve(path: Path) -> TrainingCurve:
    """Compute return and success of a run's training episodes, as means over at most PARTS equal parts of its updates.

    Raises ConfigError if the folder has no metrics.jsonl, or if no episode has ended in it.
    """
    try:
        file = path / "metrics.jsonl"
        updates = read_lines(file)
        if not updates and file.stat().st_size:
            raise ValueError("its first line is no record")
        ended = [update for update in updates if update.get("episodes")]
        rungs = [(update["env_steps"], update.get("curriculum/rung", 1.0)) for update in updates]
        rises = [end for (end, before), (_, after) in itertools.pairwise(rungs) if after > before]
        steps, returns, successes = [], [], []
        for part in np.array_split(np.arange(len(ended)), min(PARTS, max(len(ended), 1))):
            chosen = [ended[index] for index in part]
            count = sum(update["episodes"] for update in chosen)
            steps.append(chosen[-1]["env_steps"] if chosen else 0)
            returns.append(sum(u["return"] * u["episodes"] for u in chosen) / max(count, 1))
            successes.append(sum(u["success"] * u["episodes"] for u in chosen) / max(count, 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        allowed = "a run folder with a readable metrics.jsonl"
        raise ConfigError(f"paths: '{path}' has no training episodes to draw; allowed: {allowed}") from None
    if not ended:
        allowed = "a run in whose metrics.jsonl an episode has ended"
        raise ConfigError(f"paths: '{path}' has no training episodes to draw; allowed: {allowed}")
    return TrainingCurve(steps, returns, successes, _env_name(path), rises)


def _env_name(folder: Path) -> str | None:
    """Return the name of the run's environment, if it is known."""
    for file in (folder / "config.json", *sorted(folder.glob("checkpoints/*/meta.json"))):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            env = found.get("env") or found["config"]["env"]
            name = env["name"] if isinstance(env, dict) else env  # a string in old files
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(name, str):
            return name
    return None
