"""An evaluation beside the reference agents of its environment, in text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING
from relic_jax.evaluation.report import AgentCurves, Curve, Report

RECALLING = {"house-objnav": 5}
"""First episode in which recall is measured, counted from 1, by the start of an environment's name."""
OTHERS_RECALLING = 6
"""The same of all other environments."""
METRICS = {"spl": "SPL", "steps": "steps"}
"""Names of the metrics that describe agents, if the environment measures them."""
LEAST = {"SPL": 0.02, "steps": 1.0, "return": 1e-6}
"""Smallest difference between the searchers of which a share is computed, by unit, in order of preference."""


def first_recalling(env: str) -> int:
    """Return the first episode of a trial, counted from 1, in which recall is measured in an environment."""
    return next((episode for start, episode in RECALLING.items() if env.startswith(start)), OTHERS_RECALLING)


class Comparison(NamedTuple):
    """A policy between the searchers: means over the episodes in which recall is measured, in one unit."""

    unit: str
    policy: float
    forgetful: float
    remembering: float

    @property
    def decides(self) -> bool:
        """Whether the searchers differ enough to measure memory."""
        return abs(self.remembering - self.forgetful) >= LEAST[self.unit]

    @property
    def share(self) -> float:
        """Normalized score: 0 for the forgetful searcher, 1 for the remembering one."""
        return (self.policy - self.forgetful) / (self.remembering - self.forgetful)


def memory_share(report: Report) -> float | None:
    """Return the normalized score of the policy, from `first_recalling` on.

    0: the policy equals the forgetful searcher, 1: the remembering one. The unit is mean SPL, or mean steps per episode
    if the searchers differ by less than 0.02 in SPL or it is not measured, or mean return if neither is measured.

    Returns:
        The score. None if an agent or these episodes are missing, or the agents differ too little (`LEAST`).
    """
    return next((found.share for found in _comparisons(report) if found.decides), None)


def describe_agents(report: Report) -> list[str]:
    """Return one line per reference agent and one about the policy. Empty without agents."""
    lines, first = [], report.expert_episodes
    for name, agent in report.reference_agents.items():
        parts = []
        for kind, curve in _described(agent).items():
            part, later = f"{kind} {curve.mean[first]:.2f} in episode {first + 1}", curve.mean[first + 1 :]
            rest = f", {np.mean(later):.2f} in episodes {first + 2}–{len(curve.mean)}" if later else ""
            parts.append(part + rest)
        lines.append(f"{name}: {'; '.join(parts)}")
    return lines + _describe_policy(report)


def _describe_policy(report: Report) -> list[str]:
    """Return a line with `memory_share`, or with the reason why there is none. Empty without both searchers."""
    compared = _comparisons(report)
    if not compared:
        return []
    found = next((x for x in compared if x.decides), compared[-1])
    text = f"policy: {found.unit} {found.policy:.2f} in episodes {_start(report) + 1}–{len(report.returns.mean)}"
    if not found.decides:
        least = " and ".join(f"{LEAST[x.unit]:g} in {x.unit}" for x in compared)
        return [f"{text}; no normalized score, because the searchers differ by less than {least}"]
    score = f"normalized score {found.share:.0%} ({FORGETFUL} 0%, {REMEMBERING} 100%)"
    return [f"{text}, {score if found.share >= 0 else f'worse than the {FORGETFUL}'}"]


def _start(report: Report) -> int:
    """Return the index of the policy's first episode in which recall is measured."""
    return max(first_recalling(report.env) - 1, report.expert_episodes)


def _comparisons(report: Report) -> list[Comparison]:
    """Return the policy between the searchers in each unit, by preference. Empty if agents or episodes are missing."""
    agents, start = report.reference_agents, _start(report)
    if not agents.keys() >= {FORGETFUL, REMEMBERING} or len(report.returns.mean) <= start:
        return []
    curves = [_described(x) for x in (report, agents[FORGETFUL], agents[REMEMBERING])]
    units = [unit for unit in LEAST if all(unit in found for found in curves)]
    return [Comparison(unit, *(float(np.mean(found[unit].mean[start:])) for found in curves)) for unit in units]


def _described(curves: Report | AgentCurves) -> dict[str, Curve]:
    """Return by name what describes an agent: those of `METRICS` that are measured, else its returns."""
    found = {label: curves.metrics[name] for name, label in METRICS.items() if name in curves.metrics}
    return found or {"return": curves.returns}
