"""What a comparison measures: the return or a metric of the environment, in the first and in later episodes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from relic_jax.config import ConfigError
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING
from relic_jax.evaluation.aggregates import normalized
from relic_jax.evaluation.report import Report
from relic_jax.validation import require

RETURN = "return"
LOWER_IS_BETTER = ("steps", "distance")
"""Metrics of which less is better."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A quantity per episode, and which episodes are the later ones.

    Attributes:
        metric: `return`, `success`, or a name in `Environment.metrics`.
        episodes: The first and the last of the later episodes, counted from 1. None: all after the policy's first.
    """

    metric: str = RETURN
    episodes: tuple[int, int] | None = None

    @property
    def sign(self) -> int:
        """−1 for metrics of which less is better, else 1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    def normalized(self, values: np.ndarray, references: Mapping[str, float | None]) -> np.ndarray | None:
        """Return values as scores from 0 to 1 between `references`, or None if these are unknown or equal."""
        signed = {name: None if value is None else self.sign * value for name, value in references.items()}
        return normalized(self.sign * np.asarray(values, np.float64), signed)

    @property
    def text(self) -> str | None:
        """The later episodes as `read_measure` reads them."""
        return None if self.episodes is None else f"{self.episodes[0]}-{self.episodes[1]}"

    def later(self, start: int, count: int) -> slice:
        """Return the later episodes of `count`, of which the policy's first is `start`, counted from 0.

        Raises:
            ConfigError: The evaluation does not have the chosen episodes.
        """
        if self.episodes is None:
            return slice(min(start + 1, count - 1), count)
        first, last = self.episodes
        require(last <= count, "episodes", f"{first}-{last}", f"up to {count}, the number of episodes in context")
        return slice(first - 1, last)

    def by_task(self, report: Report) -> np.ndarray:
        """Return means over repeats, float64 [tasks, episodes], of the evaluation of one run with raw values.

        Raises:
            ConfigError: The evaluation does not have the metric.
        """
        known = {RETURN: report.raw_returns, "success": report.raw_successes, **(report.raw_metrics or {})}
        values = known.get(self.metric)
        if values is None:
            names = [name for name, kept in known.items() if kept is not None]
            raise ConfigError(f"metric is {self.metric!r}; allowed for {report.env!r}: {', '.join(names)}")
        raw = np.asarray(values[0], np.float64)
        return raw.reshape(report.tasks, report.repeats, report.episodes).mean(1)

    def agents(self, report: Report) -> dict[str, np.ndarray]:
        """Return the curves of the reference agents that have the metric, float64 [episodes] each."""
        found = {}
        for name, agent in report.reference_agents.items():
            curves = {RETURN: agent.returns, "success": agent.success, **agent.metrics}
            if self.metric in curves:
                found[name] = np.asarray(curves[self.metric].mean, np.float64)
        return found

    def references(
        self, returns: Mapping[str, float | None], agents: Mapping[str, np.ndarray], later: slice
    ) -> dict[str, float | None]:
        """Return the values that normalize to 0 (`random`) and 1 (`optimal`).

        For returns, those of random actions and of the expert. For other metrics, means of the forgetful and of the
        remembering searcher in the later episodes, if they are known and differ.
        """
        if self.metric == RETURN:
            return dict(returns)
        if not agents.keys() >= {FORGETFUL, REMEMBERING}:
            return {}
        low, high = (float(agents[name][later].mean()) for name in (FORGETFUL, REMEMBERING))
        return {"random": low, "optimal": high}


RETURNS = Measure()
"""Returns, with all episodes after the first as the later ones."""


def read_measure(metric: Any, episodes: Any) -> Measure:
    """Return the measure of `--metric` and `--episodes FIRST-LAST`, the latter None or text.

    Raises:
        ConfigError: The metric is no text, or not 1 ≤ FIRST ≤ LAST.
    """
    require(isinstance(metric, str) and bool(metric), "metric", metric, "return, success or a metric, e.g. steps")
    if episodes is None:
        return Measure(metric)
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", episodes) if isinstance(episodes, str) else None
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    require(1 <= first <= last, "episodes", episodes, "FIRST-LAST, counted from 1, e.g. 6-20")
    return Measure(metric, (first, last))
