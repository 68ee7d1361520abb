"""Tables and figures of the evaluations that a study declares: `evaluations.*` and `attention.*` in its folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from relic_jax.evaluation import aggregates
from relic_jax.evaluation.aggregates import Interval, band, interval
from relic_jax.experiments.attention import KINDS
from relic_jax.experiments.compare.results import RunResult, check_comparable, read_result
from relic_jax.experiments.sweep.evaluations import Table, attention_is_done
from relic_jax.experiments.sweep.evaluator import attention_of, evaluations_of
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import Member
from relic_jax.experiments.sweep.study import Study
from relic_jax.files import write_atomically
from relic_jax.plotting import draw_references, escaped, line_style, write_figure

COLUMNS = {
    "expert": "expert's episodes",
    "first": "first episode",
    "later": "later episodes",
    "changed": "episode of the change",
    "after": "episodes after it",
}
"""Returns of a row, by the names of their columns."""
RESAMPLES = 500
"""Resamples of the bands."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The returns of one variant in one evaluation, with intervals over seeds and tasks.

    Attributes:
        table: The table that declares the evaluation.
        variant: Name of the method and its settings.
        values: Values of the options that vary within the table.
        results: One for each seed.
    """

    table: Table
    variant: str
    values: dict[str, Any]
    results: tuple[RunResult, ...]

    @property
    def returns(self) -> np.ndarray:
        """Mean returns over repeats, float64 [seeds, tasks, episodes]."""
        return np.stack([result.returns for result in self.results if result.returns is not None])

    def intervals(self) -> dict[str, Interval | None]:
        """Return the numbers of `COLUMNS`. None if there are no such episodes.

        If the task changes, later episodes are those before the change.
        """
        protocol, returns = self.results[0].protocol, self.returns
        first, change = protocol.expert_episodes, protocol.change_task_at
        end = returns.shape[2] if change is None else change - 1
        parts = {"expert": returns[..., :first], "first": returns[..., first : first + 1]}
        parts |= {"later": returns[..., first + 1 : end], "changed": returns[..., end : end + 1]}
        parts |= {"after": returns[..., end + 1 :]}
        return {name: interval(aggregates.mean, x.mean(-1)) if x.shape[-1] else None for name, x in parts.items()}

    @property
    def label(self) -> str:
        """The variant with the values of the options but the first, which is the axis of the figure."""
        options = [f"{name.replace('_', ' ')} {value:g}" for name, value in list(self.values.items())[1:]]
        return ", ".join([self.variant, *options])


def rows_of(folder: StudyFolder, study: Study, runs: Sequence[Member]) -> list[Row]:
    """Return the rows of all evaluations with a result, table by table. Raises ConfigError if a file is damaged."""
    found: dict[tuple[str, str, str], list[RunResult]] = {}
    about: dict[tuple[str, str, str], tuple[Table, dict[str, Any]]] = {}
    for run in runs:
        for evaluation in evaluations_of(study, run):
            if evaluation.is_done(folder.run(run)):
                result = read_result(folder.run(run), f"{evaluation.stem}.json")
                assert result is not None
                key = (evaluation.table.name, run.variant, evaluation.stem)
                about[key] = evaluation.table, evaluation.values
                found.setdefault(key, []).append(result)
    rows = [Row(about[key][0], key[1], about[key][1], tuple(results)) for key, results in found.items()]
    for row in rows:
        check_comparable(row.results)
    order = [table.name for table in study.evaluate]
    return sorted(rows, key=lambda row: order.index(row.table.name))


def write_evaluations(folder: StudyFolder, study: Study, runs: Sequence[Member]) -> list[Path]:
    """Write evaluations.md, evaluations.csv and evaluations.png, and attention.* if the study declares it.

    Returns:
        The paths of the files. Empty without any result.
    """
    files: list[Path] = []
    if rows := rows_of(folder, study, runs):
        files += [folder.path / f"evaluations{suffix}" for suffix in (".md", ".csv", ".png")]
        write_atomically(files[0], markdown(rows))
        write_atomically(files[1], to_csv(rows))
        write_figure(draw(rows), files[2])
    if shares := attention_shares_of(folder, study, runs):
        own = [folder.path / "attention.md", folder.path / "attention.png"]
        write_atomically(own[0], attention_markdown(shares))
        write_figure(draw_attention(shares), own[1])
        files += own
    return files


def markdown(rows: Sequence[Row]) -> str:
    """Return one table of all evaluations, with its explanation."""
    numbers = [row.intervals() for row in rows]
    used = [name for name in COLUMNS if any(values[name] is not None for values in numbers)]
    header = ["evaluation", "method", "options", "seeds", *(COLUMNS[name] for name in used)]
    lines = [_line(header), _line(["---"] * len(header))]
    for row, values in zip(rows, numbers, strict=True):
        options = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in row.values.items()) or "–"
        cells = [row.table.name, row.variant, options, str(len(row.results)), *(_text(values[name]) for name in used)]
        lines.append(_line(cells))
    notes = ["Mean returns with 95% bootstrap intervals over seeds and tasks (over tasks only if there is one seed)."]
    for table in dict.fromkeys(row.table.name for row in rows):
        protocol = next(row.results[0].protocol for row in rows if row.table.name == table)
        references = [f"{name} {x:.2f}" for name, x in protocol.reference_returns.items() if x is not None]
        notes.append(f"`{table}`: {protocol.tasks} {protocol.split} tasks, {', '.join(references)}.")
    return "\n".join([*lines, "", "\n\n".join(notes), ""])


def _text(value: Interval | None) -> str:
    return "–" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table with one column per number."""
    options = list(dict.fromkeys(name for row in rows for name in row.values))
    text = io.StringIO()
    columns = [f"{name}{end}" for name in COLUMNS for end in ("", "_low", "_high")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["evaluation", "method", *options, "seeds", *columns])
    for row in rows:
        ends = [("", "", "") if x is None else [f"{end:.6g}" for end in x] for x in row.intervals().values()]
        own = [row.values.get(name, "") for name in options]
        writer.writerow([row.table.name, row.variant, *own, len(row.results), *(x for part in ends for x in part)])
    return text.getvalue()


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a panel per table: in-context curves, or returns by the first option that varies, with 95% bands."""
    tables = list({row.table.name: row.table for row in rows}.values())
    figure = Figure(figsize=(5.6 * len(tables), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, table in zip(np.atleast_1d(figure.subplots(1, len(tables))), tables, strict=True):
        own = [row for row in rows if row.table.name == table.name]
        if table.varied:
            _draw_by_option(axis, own, table.varied[0])
        else:
            _draw_curves(axis, own)
        axis.set_title(escaped(f"{table.name}, {table.split} tasks"), fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize="small")
    return figure


def _draw_curves(axis: Any, rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        _draw_band(axis, np.arange(1, row.returns.shape[2] + 1), row.returns, row.variant, index)
    protocol = rows[0].results[0].protocol
    draw_references(axis, protocol.reference_returns)
    for boundary in (protocol.expert_episodes, (protocol.change_task_at or 1) - 1):
        if boundary:
            axis.axvline(boundary + 0.5, color="0.35", linestyle=":", linewidth=1)
    axis.set(xlabel="episode in context (weights frozen)", ylabel="return per episode")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _draw_by_option(axis: Any, rows: Sequence[Row], option: str) -> None:
    """Draw the policy's first episode if the expert varies, otherwise its later ones, over the values of an option."""
    kind = "first" if option.startswith("expert_") else "later"
    values = sorted({row.values[option] for row in rows})
    constant = [
        row for row in rows if row.values[option] == 0 and option == "expert_episodes"
    ]  # quality has no meaning
    labels = list(dict.fromkeys(row.label for row in rows if row not in constant)) or [constant[0].label]
    for index, label in enumerate(labels):
        own = [row for row in rows if row.label == label and row not in constant]
        own += [row for row in constant if not own or row.variant == own[0].variant]
        own.sort(key=lambda row: values.index(row.values[option]))
        means = [numbers[kind] or numbers["first"] for numbers in (row.intervals() for row in own)]
        middle, low, high = zip(*(x for x in means if x is not None), strict=True)
        x, style = [values.index(row.values[option]) for row in own], line_style(index)
        axis.plot(x, middle, label=escaped(label), **style)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.set(xlabel=option.replace("_", " "), ylabel=f"return, {kind} episode{'s' if kind == 'later' else ''}")
    draw_references(axis, rows[0].results[0].protocol.reference_returns)


def _draw_band(axis: Any, x: np.ndarray, values: np.ndarray, label: str, index: int) -> None:
    """Draw the mean of values [seeds, tasks, n] with its band over seeds and tasks."""
    style = line_style(index) | ({"marker": None} if len(x) > 12 else {})
    axis.plot(x, values.mean((0, 1)), label=escaped(label), **style)
    low, high = band(lambda drawn: drawn.mean((-3, -2)), values, resamples=RESAMPLES)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def attention_shares_of(folder: StudyFolder, study: Study, runs: Sequence[Member]) -> dict[str, np.ndarray]:
    """Return shares by variant, float64 [seeds, kinds, episodes], means over layers and heads. Kinds are `KINDS`."""
    found: dict[str, list[np.ndarray]] = {}
    for run in runs:
        path, config = folder.run(run), attention_of(study, run)
        if study.attention is None or config is None or not attention_is_done(path, study.attention, config):
            continue
        found.setdefault(run.variant, []).append(attention_shares(path / "attention.json"))
    return {variant: np.stack(shares) for variant, shares in found.items()}


def attention_shares(file: Path) -> np.ndarray:
    """Return the shares in a result of `relic-jax attention`, float64 [kinds, episodes], see `attention_shares_of`."""
    content = json.loads(file.read_bytes())
    sink, episodes = (np.asarray(content[name], np.float64).mean((0, 1)) for name in ("sink", "episodes"))
    current = np.diagonal(episodes)
    return np.stack([sink, current, episodes.sum(-1) - current])


def attention_markdown(shares: dict[str, np.ndarray]) -> str:
    """Return a table of the shares in the first, the second and the last episode, with intervals over seeds."""
    header = ["method", "seeds", "episode", *KINDS]
    lines = [_line(header), _line(["---"] * len(header))]
    for variant, values in shares.items():
        last = values.shape[2]
        for episode in dict.fromkeys((1, min(2, last), last)):
            parts = [interval(aggregates.mean, values[:, kind, episode - 1, None]) for kind in range(len(KINDS))]
            cells = [f"{x.value:.1%} [{x.low:.1%}, {x.high:.1%}]" for x in parts]
            lines.append(_line([variant, str(len(values)), str(episode), *cells]))
    note = "Shares of attention mass, means over layers, heads and tasks, with 95% bootstrap intervals over seeds."
    return "\n".join([*lines, "", note, ""])


def draw_attention(shares: dict[str, np.ndarray]) -> Figure:
    """Draw the share of each kind over the episodes of a trial, a panel per kind, with bands over seeds."""
    figure = Figure(figsize=(4.6 * len(KINDS), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for kind, axis in enumerate(figure.subplots(1, len(KINDS))):
        for index, (variant, values) in enumerate(shares.items()):
            _draw_band(axis, np.arange(1, values.shape[2] + 1), values[:, None, kind], variant, index)
        axis.set(xlabel="current episode", ylabel=f"share on the {KINDS[kind]}".replace("the earlier", "earlier"))
        axis.set_ylim(-0.03, 1.03)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")
    return figure
