"""Figures, drawn from results files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = ("#0b6e99", "#d1495b", "#66a182", "#edae49", "#6b4e9b")


def plot_curves(summaries: Sequence[dict[str, Any]], labels: Sequence[str], path: Path) -> None:
    """Return and success against the in-context episode, bands are 95% intervals. Written atomically as PNG."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, kind in zip(axes, ("return", "success"), strict=True):
        for summary, label, color in zip(summaries, labels, _cycle(len(summaries)), strict=True):
            episode = np.arange(1, len(summary[kind]["mean"]) + 1)
            marker = "o" if len(episode) <= 60 else None
            axis.plot(episode, summary[kind]["mean"], color=color, marker=marker, markersize=3, label=label)
            axis.fill_between(episode, summary[kind]["low"], summary[kind]["high"], color=color, alpha=0.2, linewidth=0)
        axis.set(xlabel="episode in context (weights frozen)", ylabel=f"{kind} per episode")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    _draw_lines(axes[0], summaries[0]["lines"])
    axes[0].set_ylim(bottom=min(0, axes[0].get_ylim()[0]))
    axes[1].set_ylim(-0.03, 1.03)
    axes[0].legend(frameon=False, loc="best")
    first = summaries[0]
    title = f"{first['env']}, {first['split']} split ({first['tasks']} tasks, {first['split_hash']})"
    figure.suptitle(f"{title}, {first['seeds']} seed{'s' if first['seeds'] != 1 else ''}")
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    os.replace(temporary, path)


def _draw_lines(axis: Any, lines: dict[str, float | None]) -> None:
    for name, style in (("optimal", "--"), ("random", ":")):
        if lines.get(name) is not None:
            axis.axhline(lines[name], color="0.35", linestyle=style, linewidth=1, label=f"{name} {lines[name]:.1f}")


def _cycle(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]
