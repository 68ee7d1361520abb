"""An evaluation beside the reference agents of its environment, in text."""

from __future__ import annotations

import numpy as np

from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING
from relic_jax.evaluation.report import AgentCurves, Curve, Report

RECALLING = 5
"""Episodes of a trial before those in which recall is measured."""
METRICS = {"spl": "SPL", "steps": "steps"}
"""Names of the metrics that describe agents, if the environment measures them. `memory_share` uses the first."""


def memory_share(report: Report) -> float | None:
    """Return the normalized score of the policy from episode 6 on.

    0: the policy equals the forgetful searcher, 1: the remembering one. The unit is mean SPL or mean steps per episode
    if the environment measures one of them, else mean return.

    Returns:
        The score. None if an agent is missing, the policy has no episodes after the fifth, or the agents are equal.
    """
    agents, start = report.reference_agents, max(RECALLING, report.expert_episodes)
    if not agents.keys() >= {FORGETFUL, REMEMBERING} or len(report.returns.mean) <= start:
        return None
    policy, forgetful, remembering = (
        float(np.mean(_described(curves)[0][1].mean[start:]))
        for curves in (report, agents[FORGETFUL], agents[REMEMBERING])
    )
    return None if remembering == forgetful else (policy - forgetful) / (remembering - forgetful)


def describe_agents(report: Report) -> list[str]:
    """Return one line per reference agent and one with `memory_share`. Empty without agents."""
    lines, first = [], report.expert_episodes
    for name, agent in report.reference_agents.items():
        parts = []
        for kind, curve in _described(agent):
            part, later = f"{kind} {curve.mean[first]:.2f} in episode {first + 1}", curve.mean[first + 1 :]
            rest = f", {np.mean(later):.2f} in episodes {first + 2}–{len(curve.mean)}" if later else ""
            parts.append(part + rest)
        lines.append(f"{name}: {'; '.join(parts)}")
    share = memory_share(report)
    if share is not None:
        kind, curve = _described(report)[0]
        start, count = max(RECALLING, first), len(curve.mean)
        value = f"{kind} {np.mean(curve.mean[start:]):.2f} in episodes {start + 1}–{count}"
        score = f"normalized score {share:.0%} ({FORGETFUL} 0%, {REMEMBERING} 100%)"
        lines.append(f"policy: {value}, {score if share >= 0 else f'worse than the {FORGETFUL}'}")
    return lines


def _described(curves: Report | AgentCurves) -> list[tuple[str, Curve]]:
    """Return names and curves of what describes an agent: those of `METRICS` that are measured, else its returns."""
    found = [(label, curves.metrics[name]) for name, label in METRICS.items() if name in curves.metrics]
    return found or [("return", curves.returns)]
