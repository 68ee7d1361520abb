"""An evaluation beside the reference agents of its environment, in text."""

from __future__ import annotations

import numpy as np

from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING
from relic_jax.evaluation.report import AgentCurves, Curve, Report

RECALLING = 5
"""Episodes of a trial before those in which recall is measured."""
STEPS = "steps"
"""The metric that agents are described by, if there is one. Fewer are better."""


def memory_share(report: Report) -> float | None:
    """Return how far the policy gets from the forgetful to the remembering searcher from episode 6 on.

    0: the policy equals the forgetful searcher, 1: the remembering one. The unit is mean steps per episode if the
    environment measures them, else mean return.

    Returns:
        The share. None if an agent is missing, the policy has no episodes after the fifth, or the agents are equal.
    """
    agents, start = report.reference_agents, max(RECALLING, report.expert_episodes)
    if not agents.keys() >= {FORGETFUL, REMEMBERING} or len(report.returns.mean) <= start:
        return None
    policy, forgetful, remembering = (
        float(np.mean(_described(curves)[1].mean[start:]))
        for curves in (report, agents[FORGETFUL], agents[REMEMBERING])
    )
    return None if remembering == forgetful else (policy - forgetful) / (remembering - forgetful)


def describe_agents(report: Report) -> list[str]:
    """Return one line per reference agent and one with `memory_share`. Empty without agents."""
    lines, first = [], report.expert_episodes
    for name, agent in report.reference_agents.items():
        kind, curve = _described(agent)
        line, later = f"{name}: {kind} {curve.mean[first]:.2f} in episode {first + 1}", curve.mean[first + 1 :]
        if later:
            line += f", {np.mean(later):.2f} in episodes {first + 2}–{len(curve.mean)}"
        lines.append(line)
    share = memory_share(report)
    if share is not None:
        kind, curve = _described(report)
        start, count = max(RECALLING, first), len(curve.mean)
        value = f"{kind} {np.mean(curve.mean[start:]):.2f} in episodes {start + 1}–{count}"
        way = f"{share:.0%} of the way from the {FORGETFUL} to the {REMEMBERING}"
        lines.append(f"policy: {value}, {way if share >= 0 else f'worse than the {FORGETFUL}'}")
    return lines


def _described(curves: Report | AgentCurves) -> tuple[str, Curve]:
    """Return the name and the curve of what describes an agent: its steps if they are measured, else its returns."""
    if STEPS in curves.metrics:
        return STEPS, curves.metrics[STEPS]
    return "return", curves.returns
