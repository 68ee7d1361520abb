"""The results of one run that are compared, and whether those of several runs can be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relic_jax.config import ConfigError, TrainConfig, leaves
from relic_jax.evaluation.aggregates import normalized
from relic_jax.evaluation.learning_speed import Learning
from relic_jax.evaluation.report import Report
from relic_jax.experiments.compare.methods import read_config
from relic_jax.metrics import EVALUATIONS, read_evaluations

CURVE = "curve.json"
"""File of the evaluation at the end of a run."""
_TASKS = ("env", "split", "split_hash", "tasks")
_PROTOCOL = ("episodes", "repeats", "expert_episodes", "expert_quality", "context_limit", "change_task_at")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The evaluation of one run.

    Attributes:
        folder: The run folder.
        config: Its config.
        report: The evaluation.
        returns: float64 [tasks, episodes], means over repeats.
        evaluations: The evaluations during training, see `evaluation.during`. Can be empty.
    """

    folder: Path
    config: TrainConfig
    report: Report
    returns: np.ndarray
    evaluations: list[dict[str, Any]]

    @property
    def first(self) -> np.ndarray:
        """Return of the policy's first episode, float64 [tasks]."""
        return self.returns[:, self.report.expert_episodes]

    @property
    def later(self) -> np.ndarray:
        """Mean return of all later episodes, float64 [tasks]; of the first if there is only one."""
        later = self.returns[:, self.report.expert_episodes + 1 :]
        return later.mean(1) if later.shape[1] else self.first

    def learning(self) -> Learning | None:
        """Return normalized scores during training: later episodes, or first ones if there is only one. None: none."""
        if len(self.evaluations) < 2:
            return None
        kind = "later_by_task" if self.evaluations[0].get("later_by_task") else "first_by_task"
        returns = np.asarray([evaluation[kind] for evaluation in self.evaluations], np.float64)
        scores = normalized(returns, self.evaluations[0]["reference_returns"])
        steps = np.asarray([evaluation["env_steps"] for evaluation in self.evaluations], np.float64)
        return None if scores is None else Learning(steps, scores)


def read_result(folder: Path, curve: str = CURVE) -> RunResult | None:
    """Return the results of a run, or None if it was not evaluated.

    Args:
        folder: The run folder.
        curve: Name of the evaluation's file in the folder.

    Raises:
        ConfigError: If a file is damaged, or if the evaluation pools several runs or has no raw values.
    """
    file = folder / curve
    if not file.is_file():
        return None
    try:
        report = Report.from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"paths: '{file}' is no evaluation ({error}); allowed: a result of relic-jax evaluate"
        ) from None
    if report.seeds != 1 or report.raw_returns is None:
        reason = f"pools {report.seeds} runs" if report.seeds != 1 else "has no raw values (an early version wrote it)"
        raise ConfigError(
            f"paths: '{file}' {reason}; allowed: the evaluation of one run, by: relic-jax evaluate {folder}"
        )
    raw = np.asarray(report.raw_returns[0], np.float64)
    returns = raw.reshape(report.tasks, report.repeats, report.episodes).mean(1)
    return RunResult(folder, read_config(folder), report, returns, read_evaluations(folder / EVALUATIONS))


def check_comparable(results: Sequence[RunResult]) -> None:
    """Raise ConfigError, with the first field that differs, if runs were not evaluated alike in the same tasks."""
    first = results[0]
    for result in results[1:]:
        for field, own, others in _pairs(result, first):
            if own != others:
                allowed = f"{others!r}, as '{first.folder}' has (runs that are compared)"
                raise ConfigError(f"paths: '{result.folder}' has {field} {own!r}; allowed: {allowed}")


def _pairs(result: RunResult, other: RunResult) -> list[tuple[str, Any, Any]]:
    """Return (field, value of one run, value of the other) of everything that must be equal."""

    def about(run: RunResult) -> Mapping[str, Any]:
        names = ((name, f"eval.{name}" if name in _PROTOCOL else name) for name in (*_TASKS, *_PROTOCOL))
        found = {label: getattr(run.report, name, None) for name, label in names}
        env = {name: value for name, value in leaves(run.config) if name.startswith("env.")}
        return found | env | {"trial.action_repeat": run.config.trial.action_repeat}

    own, others = about(result), about(other)
    pairs = [(name, own.get(name), others.get(name)) for name in {**own, **others}]
    if result.evaluations and other.evaluations:
        for name, field in (("tasks", "eval.every_tasks"), ("episodes", "eval.every_episodes")):
            pairs.append((field, result.evaluations[0].get(name), other.evaluations[0].get(name)))
    return pairs
