"""Draw figures of results. Does not use pyplot, so the program's backend, settings and open figures do not change."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from relic_jax.errors import ConfigError
from relic_jax.files import replacing

if TYPE_CHECKING:
    from relic_jax.evaluation.report import AgentCurves, Curve, Report

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can distinguish, without its yellow."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D")
FORMATS = {".png": "png", ".pdf": "pdf", ".svg": "svg"}
INSIDE = 5
"""Maximum number of curves for which the legend is inside the axes."""
ROWS = 22
"""Maximum entries per column of a legend beside the axes."""
_DRAWING = threading.Lock()
"""Matplotlib draws one figure at a time."""


class CellFigure(Figure):
    """A figure without pyplot. A notebook shows it as an image if it is the last expression of a cell."""

    def __init__(self, figsize: tuple[float, float]) -> None:
        super().__init__(figsize=figsize, layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """Return the PNG image that IPython asks for."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


class TrainingCurve(NamedTuple):
    """Returns of training episodes, averaged over n parts of the run.

    Attributes:
        env_steps: float ``[n]``, environment steps.
        returns: float ``[n]``, mean return.
        successes: float ``[n]``, success rate.
        env: Name of the environment.
        rises: Environment steps at which the rung of the curriculum rose.
    """

    env_steps: Sequence[float]
    returns: Sequence[float]
    successes: Sequence[float]
    env: str | None = None
    rises: Sequence[float] = ()


def figure_format(path: Path, field: str = "out") -> str:
    """Return the format that a file's suffix names: 'png', 'pdf' or 'svg'. Without a suffix, 'png'.

    Args:
        path: The file.
        field: Name of the user's option, for the message.

    Raises:
        ConfigError: If the suffix names another format.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS and is_suffix(suffix):
        raise ConfigError(f"{field} is '{path}'; allowed: a file name that ends in {', '.join(FORMATS)}")
    return FORMATS.get(suffix, "png")


def is_suffix(text: str) -> bool:
    """Return whether a suffix names a file format, such as .jpg and .mp4, unlike .v2 and .5."""
    return re.fullmatch(r"\.[A-Za-z]{2,}\d?", text) is not None


def plot_curves(reports: Sequence[Report], labels: Sequence[str], path: Path) -> None:
    """Write `curves_figure` atomically. Raises ConfigError as `figure_format` does."""
    figure_format(path)
    write_figure(curves_figure(reports, labels), path)


def plot_training(curves: Sequence[TrainingCurve], labels: Sequence[str], path: Path) -> None:
    """Write `training_figure` atomically. Raises ConfigError as `figure_format` does."""
    figure_format(path)
    write_figure(training_figure(curves, labels), path)


def curves_figure(reports: Sequence[Report], labels: Sequence[str]) -> Figure:
    """Draw return and success against the episode in the context, and steps if all reports have them.

    Bands are 95% intervals.

    Args:
        reports: The evaluations, one curve each.
        labels: Labels of the curves.
    """
    agents = next((report.reference_agents for report in reports if report.reference_agents), {})
    kinds = ("return", "success", *(("steps",) if all("steps" in report.metrics for report in reports) else ()))
    figure, axes = _figure(len(reports), 2 + len(agents), len(kinds))
    names = _named(reports, labels)
    for axis, kind in zip(axes, kinds, strict=True):
        curves = [_curve(report, kind) for report in reports]
        for index, curve in enumerate(curves):
            episode, style = np.arange(1, len(curve.mean) + 1), line_style(index)
            style["marker"] = style["marker"] if len(episode) <= 60 else None
            axis.plot(episode, curve.mean, **style)
            axis.fill_between(episode, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0)
        axis.set(xlabel="episode in context (weights frozen)", ylabel=f"{kind} per episode")
        longest = max(len(curve.mean) for curve in curves)
        margin = max(0.04 * longest, 0.3)
        axis.set_xlim(1 - margin, longest + margin)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first = reports[0]
    references = draw_references(axes[0], first.reference_returns) + draw_agents(axes, kinds, agents)
    _finish(axes, names, references)
    about = f"{first.env_text}, {first.split} split ({first.tasks} tasks, {first.split_hash})"
    figure.suptitle(escaped(about + _seeds(reports)))
    return figure


def training_figure(curves: Sequence[TrainingCurve], labels: Sequence[str], of: str = "training episode") -> Figure:
    """Draw return and success against environment steps, with dotted lines where a curriculum reached the next rung.

    Args:
        curves: One for each run.
        labels: Labels of the curves.
        of: The episodes that the curves average over, in the singular.
    """
    figure, axes = _figure(len(curves))
    for index, curve in enumerate(curves):
        style = line_style(index) | {"marker": None if len(curve.env_steps) > 1 else "o"}
        axes[0].plot(curve.env_steps, curve.returns, **style)
        axes[1].plot(curve.env_steps, curve.successes, **style)
    for axis, kind in zip(axes, ("return", "success"), strict=True):
        axis.set(xlabel="environment steps of training", ylabel=f"{kind} per {of}")
        for index, curve in enumerate(curves):
            for step in curve.rises:
                axis.axvline(step, color=line_style(index)["color"], linestyle=":", linewidth=1, zorder=1)
    _finish(axes, list(labels), [])
    names = sorted({curve.env for curve in curves if curve.env})
    figure.suptitle(escaped(", ".join([*names, f"{of}s"])))
    return figure


def _curve(curves: Report | AgentCurves, kind: str) -> Curve:
    """Return the curve of `return`, `success` or a metric."""
    return {"return": curves.returns, "success": curves.success, **curves.metrics}[kind]


def _figure(count: int, references: int = 2, panels: int = 2) -> tuple[Figure, Any]:
    """Create a figure with some axes, larger if the legend of `count` curves and the references is beside them."""
    columns = -(-(count + references) // ROWS) if count > INSIDE else 0
    rows = min(count + references, ROWS) if columns else 0
    figure = CellFigure((5.5 * panels + 2.4 * columns, max(4.2, 0.24 * rows)))
    return figure, figure.subplots(1, panels)


def line_style(index: int) -> dict[str, Any]:
    """Return line, colour and marker of a curve. The first 112 are distinct."""
    group, color = divmod(index, len(COLORS))
    dashes, marker = DASHES[group % len(DASHES)], MARKERS[group // len(DASHES) % len(MARKERS)]
    return {"color": COLORS[color], "linestyle": dashes, "marker": marker, "markersize": 3}


def _named(reports: Sequence[Report], labels: Sequence[str]) -> list[str]:
    """Return the labels, with the number of seeds if it differs between curves."""
    if len({report.seeds for report in reports}) == 1:
        return list(labels)
    return [f"{label} ({_count(report.seeds)})" for label, report in zip(labels, reports, strict=True)]


def _seeds(reports: Sequence[Report]) -> str:
    """Return the end of the title: the number of seeds if it is the same for all curves."""
    counts = {report.seeds for report in reports}
    if len(counts) > 1:
        return ""
    return f", {_count(counts.pop())}" + (" per curve" if len(reports) > 1 else "")


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def draw_references(axis: Any, references: dict[str, float | None]) -> list[tuple[Any, str]]:
    """Draw the reference returns as horizontal lines and return (line, label) for the legend."""
    found = []
    digits = 2 if all(value is None or abs(value) < 10 for value in references.values()) else 1
    for name, style in (("optimal", "--"), ("random", ":")):
        value = references.get(name)
        if value is not None:
            line = axis.axhline(value, color="0.35", linestyle=style, linewidth=1, zorder=1)
            found.append((line, f"{name} {value:.{digits}f}"))
    return found


def draw_agents(axes: Any, kinds: Sequence[str], agents: Mapping[str, AgentCurves]) -> list[tuple[Any, str]]:
    """Draw the curves of reference agents, dashed, one kind per axes, and return (line, label) for the legend."""
    found = []
    for index, (name, agent) in enumerate(agents.items()):
        style: dict[str, Any] = {"color": str(0.6 - 0.3 * (index % 2)), "linestyle": (0, (4, 1.5)), "linewidth": 1.2}
        for axis, kind in zip(axes, kinds, strict=True):
            if kind in ("return", "success") or kind in agent.metrics:
                mean = _curve(agent, kind).mean
                (line,) = axis.plot(np.arange(1, len(mean) + 1), mean, zorder=1, **style)
        found.append((line, name))
    return found


def _finish(axes: Any, labels: Sequence[str], lines: list[tuple[Any, str]]) -> None:
    """Set limits, grid and legend, which is inside the first axes for few curves and beside the axes for many."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].set_ylim(bottom=min(0, axes[0].get_ylim()[0]))
    axes[1].set_ylim(-0.03, 1.03)
    handles = [*axes[1].get_lines()[: len(labels)], *(line for line, _ in lines)]
    texts = [escaped(label) for label in (*labels, *(label for _, label in lines))]
    if len(labels) <= INSIDE:
        axes[0].legend(handles, texts, frameon=False, loc="best")
        return
    columns, size = -(-len(texts) // ROWS), "small"
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
    axes[-1].legend(handles, texts, frameon=False, ncols=columns, fontsize=size, handlelength=3, **place)


def escaped(label: str) -> str:
    """Escape a label: dollar signs do not start mathematics, and a leading underscore does not hide it."""
    text = label.replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, atomically and without the date. Raises ConfigError as `figure_format` does."""
    kind_of_file = figure_format(path)
    metadata = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind_of_file]
    with replacing(path) as temporary, _DRAWING:
        figure.savefig(temporary, dpi=130, format=kind_of_file, metadata=metadata)
