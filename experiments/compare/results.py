"""The results of one run that are compared, and whether those of several runs can be.

They are read from the files of its evaluation, or from a record: the few numbers of a run that are committed.
"""

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
RECORD = "record.json"
"""File of a recorded run, which has no evaluation and no checkpoint."""
_TASKS = ("env", "split", "split_hash", "tasks")
_PROTOCOL = ("episodes", "repeats", "expert_episodes", "expert_quality", "context_limit", "change_task_at")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a run was evaluated. The fields are those of `evaluation.Report`."""

    env: str
    split: str
    split_hash: str
    tasks: int
    episodes: int
    reference_returns: dict[str, float | None]
    repeats: int = 1
    expert_episodes: int = 0
    expert_quality: float = 1.0
    context_limit: int | None = None
    change_task_at: int | None = None

    @classmethod
    def of(cls, report: Report) -> Protocol:
        """Return the protocol of a report."""
        return cls(**{field.name: getattr(report, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The evaluation of one run. All returns are means over repeats.

    Attributes:
        folder: The run folder.
        config: Its config.
        protocol: How it was evaluated.
        curve: Mean return over tasks, float64 [episodes].
        first: Return of the policy's first episode, float64 [tasks].
        later: Mean return of all later episodes, float64 [tasks]; of the first if there is only one.
        returns: float64 [tasks, episodes]. None: the run is recorded, and these were not kept.
        evaluations: The evaluations during training, see `evaluation.during`. Can be empty.
    """

    folder: Path
    config: TrainConfig
    protocol: Protocol
    curve: np.ndarray
    first: np.ndarray
    later: np.ndarray
    returns: np.ndarray | None
    evaluations: list[dict[str, Any]]

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
        return _read_record(folder) if curve == CURVE and (folder / RECORD).is_file() else None
    report = read_report(file)
    if report.seeds != 1 or report.raw_returns is None:
        reason = f"pools {report.seeds} runs" if report.seeds != 1 else "has no raw values (an early version wrote it)"
        raise ConfigError(
            f"paths: '{file}' {reason}; allowed: the evaluation of one run, by: relic-jax evaluate {folder}"
        )
    raw = np.asarray(report.raw_returns[0], np.float64)
    returns = raw.reshape(report.tasks, report.repeats, report.episodes).mean(1)
    start = report.expert_episodes
    later = returns[:, start + 1 :].mean(1) if report.episodes > start + 1 else returns[:, start]
    return RunResult(
        folder,
        read_config(folder),
        Protocol.of(report),
        curve=returns.mean(0),
        first=returns[:, start],
        later=later,
        returns=returns,
        evaluations=read_evaluations(folder / EVALUATIONS),
    )


def read_report(file: Path) -> Report:
    """Read a JSON result of `relic-jax evaluate`. Raises ConfigError if it is none."""
    try:
        return Report.from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        allowed = "a result of relic-jax evaluate"
        raise ConfigError(f"paths: '{file}' is no evaluation ({error}); allowed: {allowed}") from None


def record_of(result: RunResult) -> dict[str, Any]:
    """Return the numbers of a run from which `read_result` restores its result, without `returns`, as plain values."""
    shared = {name: result.evaluations[0][name] for name in _DURING} if result.evaluations else {}
    learning = {kind: [evaluation.get(kind) for evaluation in result.evaluations] for kind in _LEARNING}
    return {
        "protocol": dataclasses.asdict(result.protocol),
        "return": result.curve.tolist(),
        "first_by_task": result.first.tolist(),
        "later_by_task": result.later.tolist(),
        "learning": shared | {kind: values for kind, values in learning.items() if None not in values},
    }


_DURING = ("tasks", "episodes", "reference_returns")
"""Values that all evaluations during a training share."""
_LEARNING = ("env_steps", "first", "first_by_task", "later_by_task")
"""Values of each."""


def _read_record(folder: Path) -> RunResult:
    """Return the result of a recorded run. Raises ConfigError if its file is damaged."""
    file = folder / RECORD
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"paths: '{file}' is no record of a run ({error}); allowed: one of runs.jsonl") from None
    return result_of(record, folder, read_config(folder), f"paths: '{file}'")


def result_of(record: Any, folder: Path, config: TrainConfig, name: str) -> RunResult:
    """Return the result from which `record_of` made a record.

    Args:
        record: The record.
        folder: The run folder of the result.
        config: The config of the run.
        name: The name of the record, for errors.

    Raises:
        ConfigError: If the record does not have the content of `record_of`.
    """
    try:
        numbers = (np.asarray(record[name], np.float64) for name in ("return", "first_by_task", "later_by_task"))
        curve, first, later = numbers
        learning = record["learning"]
        shared = {name: learning[name] for name in _DURING if name in learning}
        kinds = [kind for kind in _LEARNING if kind in learning]
        rows = zip(*(learning[kind] for kind in kinds), strict=True)
        evaluations = [shared | dict(zip(kinds, row, strict=True)) for row in rows]
        protocol = Protocol(**record["protocol"])
        return RunResult(folder, config, protocol, curve, first, later, None, evaluations)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{name} is no record of a run ({error}); allowed: one of runs.jsonl") from None


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
        found = {label: getattr(run.protocol, name) for name, label in names}
        env = {name: value for name, value in leaves(run.config) if name.startswith("env.")}
        return found | env | {"trial.action_repeat": run.config.trial.action_repeat}

    own, others = about(result), about(other)
    pairs = [(name, own.get(name), others.get(name)) for name in {**own, **others}]
    if result.evaluations and other.evaluations:
        for name, field in (("tasks", "eval.every_tasks"), ("episodes", "eval.every_episodes")):
            pairs.append((field, result.evaluations[0].get(name), other.evaluations[0].get(name)))
    return pairs
