"""The figure of `relic-jax sightings`: paths of episodes of a trial, and the earlier steps that attention reads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from relic_jax.environment.base import TrialMap
from relic_jax.evaluation.sightings import Trial
from relic_jax.plotting import COLORS, CellFigure, escaped

COLUMNS = 3
LISTED = 10
"""Number of steps that `Panel.to_json` lists."""
PATH, ASKED, OTHER, SEEN, UNSEEN = COLORS[0], COLORS[2], "0.45", COLORS[1], "0.3"
AREA = 1600.0
"""Area of the mark of a place that gets all the mass, in square points."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One episode of a trial, and the attention of its recalling steps.

    Attributes:
        trial: The trial.
        episode: Index of the episode, from 0.
        weight: float [T]. Mean attention weight of each step of the trial. Zeros if the episode has no recalling steps.
        uniform: Mass on sightings under uniform attention.
    """

    trial: Trial
    episode: int
    weight: np.ndarray
    uniform: float

    @property
    def steps(self) -> np.ndarray:
        """The steps of the episode, ascending."""
        return np.flatnonzero(self.trial.episode == self.episode)

    @property
    def asked(self) -> int:
        """The kind that the episode asks for."""
        return int(self.trial.map.asked[self.steps[0]])

    @property
    def recalling(self) -> int:
        """Number of recalling steps."""
        return int(self.trial.recalling[self.steps].sum())

    @property
    def sighted(self) -> np.ndarray:
        """The steps of the trial at which the target kind was in view, bool [T]."""
        return self.trial.map.in_view[:, self.asked]

    @property
    def mass(self) -> float:
        """Mass on earlier sightings."""
        return float(self.weight[self.sighted & (self.trial.episode < self.episode)].sum())

    def to_json(self) -> dict[str, Any]:
        """Return the panel as plain values, with the most read steps of earlier episodes."""
        content: dict[str, Any] = {"episode": self.episode + 1, "asked": self.asked, "steps": len(self.steps)}
        content["recalling_steps"] = self.recalling
        if not self.recalling:
            return content
        earlier = np.flatnonzero(self.trial.episode < self.episode)
        order = earlier[np.argsort(-self.weight[earlier], kind="stable")][:LISTED]
        read = [
            {
                "episode": int(self.trial.episode[step]) + 1,
                "step": int(step),
                "position": self.trial.map.position[step].round(2).tolist(),
                "asked_kind_in_view": bool(self.sighted[step]),
                "weight": round(float(self.weight[step]), 4),
            }
            for step in order
        ]
        return content | {"mass": round(self.mass, 4), "uniform": round(self.uniform, 4), "read": read}


def draw(panels: Sequence[Panel], title: str) -> Figure:
    """Draw one map for each panel."""
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = CellFigure((3.1 * columns, 3.35 * rows + 0.9))
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_map(axis, panel.trial.map, panel.asked)
        _draw_read(axis, panel)
        _draw_path(axis, panel)
        axis.set_title(_title(panel), fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(escaped(title), fontsize=10)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _title(panel: Panel) -> str:
    text = f"episode {panel.episode + 1}: kind {_letter(panel.asked)}, {_count(len(panel.steps), 'step')}"
    if not panel.recalling:
        seen = panel.sighted[panel.trial.episode < panel.episode].any()
        return text + ("\nin view from the first step on" if seen else "\nnot seen in an earlier episode")
    return text + f"\n{panel.mass:.0%} on earlier sightings (uniform {panel.uniform:.0%})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _letter(kind: int) -> str:
    return chr(ord("A") + kind)


def _draw_map(axis: Any, layout: TrialMap, asked: int) -> None:
    """Draw walls or the grid, and a letter for each object."""
    (left, bottom), (right, top) = layout.low, layout.high
    axis.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    if layout.cell is not None:
        for x in np.arange(left, right, layout.cell)[1:]:
            axis.axvline(x, color="0.9", linewidth=0.6, zorder=0)
        for y in np.arange(bottom, top, layout.cell)[1:]:
            axis.axhline(y, color="0.9", linewidth=0.6, zorder=0)
    for ends in layout.walls:
        axis.plot(*ends.T, color="0.2", linewidth=1.2, zorder=1)
    for place, kind in zip(layout.objects, layout.kinds, strict=True):
        mine = kind == asked
        fill, edge, text = (ASKED, ASKED, "white") if mine else ("white", OTHER, OTHER)
        box: dict[str, Any] = {"boxstyle": "square,pad=0.2", "facecolor": fill, "edgecolor": edge, "linewidth": 0.8}
        style = {"ha": "center", "va": "center", "fontsize": 7, "fontweight": "bold", "zorder": 6}
        axis.text(*place, _letter(kind), color=text, bbox=box, **style)


def _draw_read(axis: Any, panel: Panel) -> None:
    """Draw marks where the agent stood at the earlier steps that attention reads. The area is the mass."""
    earlier = panel.trial.episode < panel.episode
    for color, chosen in ((UNSEEN, earlier & ~panel.sighted), (SEEN, earlier & panel.sighted)):
        places, mass = mass_by_place(panel.trial.map.position[chosen], panel.weight[chosen])
        axis.scatter(*places.T, s=AREA * mass, color=color, alpha=0.55, linewidth=0, zorder=3, clip_on=False)


def mass_by_place(position: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different positions, float [n, 2], and the sum of the weights of the steps at each, float [n]."""
    places, index = np.unique(position.round(2), axis=0, return_inverse=True)
    return places, np.bincount(index.ravel(), weight, minlength=len(places))


def _draw_path(axis: Any, panel: Panel) -> None:
    path = panel.trial.map.position[panel.steps]
    axis.plot(*path.T, color=PATH, linewidth=1.4, zorder=4)
    axis.plot(*path[0], marker="o", color=PATH, markersize=5, zorder=5)


def _legend() -> list[Line2D]:
    def mark(marker: str, color: str, label: str, size: float = 7, alpha: float = 1.0) -> Line2D:
        return Line2D([], [], marker=marker, color=color, linestyle="", markersize=size, alpha=alpha, label=label)

    return [
        Line2D([], [], color=PATH, marker="o", markersize=5, label="path, from the dot on"),
        mark("s", ASKED, "target kind"),
        Line2D([], [], marker="s", linestyle="", markerfacecolor="white", color=OTHER, label="other kinds"),
        mark("o", SEEN, "read: target kind was in view", 10, 0.55),
        mark("o", UNSEEN, "read: it was not in view", 10, 0.55),
    ]
