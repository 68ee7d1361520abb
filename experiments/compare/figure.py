"""The figure of a comparison: in-context curves, learning curves and performance profiles, with 95% bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from relic_jax.evaluation.aggregates import band, performance_profile
from relic_jax.evaluation.learning_speed import THRESHOLD, aligned
from relic_jax.experiments.compare.measure import RETURN
from relic_jax.experiments.compare.results import RunResult
from relic_jax.plotting import CellFigure, draw_references, escaped, line_style

RESAMPLES = 500
"""Resamples of the bands."""


def draw(names: Sequence[str], results: Sequence[Sequence[RunResult]]) -> Figure:
    """Draw a comparison.

    Args:
        names: Labels of the methods.
        results: The runs of each method, evaluated alike in the same tasks.
    """
    rows = min(len(names), 40)
    size = (16, max(4.6, 4.2 + 0.24 * (rows // 3)))
    figure = CellFigure(size)
    axes = figure.subplots(1, 3)
    for index, runs in enumerate(results):
        style = line_style(index) | {"marker": None}
        _in_context(axes[0], runs, style)
        _learning(axes[1], runs, style)
        _profile(axes[2], runs, style)
    first = results[0][0]
    protocol, measure = first.protocol, first.measure
    references = _references(axes[0], first)
    handles = [*axes[0].get_lines()[: len(names)], *(line for line, _ in references)]
    labels = [escaped(label) for label in (*names, *(label for _, label in references))]
    axes[0].set(xlabel="episode in context (weights frozen)", ylabel=f"{measure.metric} per episode")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _finish_learning(axes[1])
    kind = measure.metric if measure.normalized(np.zeros(1), first.references) is None else "normalized score"
    axes[2].set(xlabel=f"{kind} τ of the later episodes", ylabel="share of runs and tasks above τ", ylim=(-0.03, 1.03))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
    over = "seeds" if any(run.returns is None for runs in results for run in runs) else "seeds and tasks"
    figure.suptitle(escaped(f"{protocol.env}, {protocol.split} split ({protocol.tasks} tasks), 95% bands over {over}"))
    return figure


def _references(axis: Any, run: RunResult) -> list[tuple[Any, str]]:
    """Draw reference agents and, for returns, random actions and the expert. Return (line, label) for the legend.

    Random actions are far from trained policies. Their line is left out where it would flatten the curves.
    """
    low, high = axis.get_ylim()
    found = []
    if run.measure.metric == RETURN:
        known = run.protocol.reference_returns
        near: dict[str, float | None] = {
            name: x for name, x in known.items() if x is not None and abs(x - high) < 2 * (high - low)
        }
        found += draw_references(axis, near)
    for index, (name, curve) in enumerate(run.agents.items()):
        style: dict[str, Any] = {"color": str(0.6 - 0.3 * (index % 2)), "linestyle": (0, (4, 1.5)), "linewidth": 1.2}
        (line,) = axis.plot(np.arange(1, len(curve) + 1), curve, zorder=1, **style)
        found.append((line, name))
    return found


def _in_context(axis: Any, runs: Sequence[RunResult], style: dict[str, Any]) -> None:
    """Draw values by episode, with a band over seeds and tasks, or over seeds only if a run is recorded."""
    curves = np.stack([run.curve for run in runs])  # [seeds, episodes]
    known = [run.returns for run in runs if run.returns is not None]  # [tasks, episodes] each
    returns = np.stack(known) if len(known) == len(runs) else curves[:, None]
    _line(axis, np.arange(1, curves.shape[1] + 1), curves.mean(0), _over_tasks(returns), style)


def _learning(axis: Any, runs: Sequence[RunResult], style: dict[str, Any]) -> None:
    """Draw normalized scores during training, up to the end of the shortest run."""
    found = [run.learning() for run in runs]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return
    steps, scores = aligned(known)
    _line(axis, steps, scores.mean((0, 1)), _over_tasks(scores), style)


def _profile(axis: Any, runs: Sequence[RunResult], style: dict[str, Any]) -> None:
    later = np.stack([run.later for run in runs])
    scores = runs[0].measure.normalized(later, runs[0].references)
    scores, low, high = (later, later.min(), later.max()) if scores is None else (scores, 0.0, max(1.0, scores.max()))
    thresholds = np.linspace(low, high, 101)

    def profile(scores: np.ndarray) -> np.ndarray:
        return performance_profile(scores, thresholds)

    _line(axis, thresholds, profile(scores), band(profile, scores, resamples=RESAMPLES), style)


def _over_tasks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the band of the mean of values [seeds, tasks, n]."""
    return band(lambda drawn: drawn.mean((-3, -2)), values, resamples=RESAMPLES)


def _line(axis: Any, x: np.ndarray, y: np.ndarray, ends: tuple[np.ndarray, np.ndarray], style: dict[str, Any]) -> None:
    single = style | {"marker": "o"} if len(x) == 1 else style
    axis.plot(x, y, **single)
    axis.fill_between(x, *ends, color=style["color"], alpha=0.2, linewidth=0)


def _finish_learning(axis: Any) -> None:
    axis.set(xlabel="environment steps of training", ylabel="normalized score on held-out tasks")
    if axis.get_lines():
        axis.axhline(THRESHOLD, color="0.35", linestyle="--", linewidth=1, zorder=1)
    else:
        axis.text(0.5, 0.5, "no evaluations during training\n(--eval.every)", ha="center", transform=axis.transAxes)
