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

from relic_jax.config import ConfigError, Options, TrainConfig, leaves
from relic_jax.evaluation.aggregates import normalized
from relic_jax.evaluation.learning_speed import Learning
from relic_jax.evaluation.report import Report, agree
from relic_jax.experiments.compare.measure import RETURN, RETURNS, Measure
from relic_jax.experiments.compare.methods import read_config
from relic_jax.metrics import EVALUATIONS, read_evaluations
from relic_jax.validation import require

CURVE = "curve.json"
"""File of the evaluation at the end of a run."""
RECORD = "record.json"
"""File of a recorded run, which has no evaluation and no checkpoint."""
RECORDS = "runs.jsonl"
"""File of the recorded runs of a study, one per line."""
_TASKS = ("env", "split", "split_hash", "tasks", "env_options")
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
    env_options: Options | None = None
    context_limit: int | None = None
    change_task_at: int | None = None

    @classmethod
    def of(cls, report: Report) -> Protocol:
        """Return the protocol of a report."""
        return cls(**{field.name: getattr(report, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The evaluation of one run: a measure, the return unless another one is chosen. Values are means over repeats.

    Attributes:
        folder: The run folder.
        config: Its config.
        protocol: How it was evaluated.
        curve: Mean over tasks, float64 [episodes].
        first: Value of the policy's first episode, float64 [tasks].
        later: Mean of the later episodes, float64 [tasks]; of the first if there is only one.
        returns: float64 [tasks, episodes]. None: the run is recorded, and these were not kept.
        evaluations: The evaluations during training, see `evaluation.during`. Can be empty.
        measure: What the values are. A recorded run keeps metrics other than returns as means over tasks: one "task".
        references: The values that are normalized to 0 (`random`) and 1 (`optimal`), see `Measure.references`.
        agents: Curves of the environment's reference agents, float64 [episodes] each, by name. Can be empty.
    """

    folder: Path
    config: TrainConfig
    protocol: Protocol
    curve: np.ndarray
    first: np.ndarray
    later: np.ndarray
    returns: np.ndarray | None
    evaluations: list[dict[str, Any]]
    measure: Measure = RETURNS
    references: dict[str, float | None] = dataclasses.field(default_factory=dict)
    agents: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def later_episodes(self) -> slice:
        """The later episodes, counted from 0."""
        return self.measure.later(self.protocol.expert_episodes, self.protocol.episodes)

    def over_tasks(self) -> RunResult:
        """Return the result with means over tasks in place of values by task: one "task"."""
        first, later = self.first.mean(keepdims=True), self.later.mean(keepdims=True)
        return dataclasses.replace(self, first=first, later=later, returns=None)

    def learning(self) -> Learning | None:
        """Return normalized scores during training: later episodes, or first ones if there is only one. None: none."""
        if len(self.evaluations) < 2:
            return None
        kind = "later_by_task" if self.evaluations[0].get("later_by_task") else "first_by_task"
        returns = np.asarray([evaluation[kind] for evaluation in self.evaluations], np.float64)
        scores = normalized(returns, self.evaluations[0]["reference_returns"])
        steps = np.asarray([evaluation["env_steps"] for evaluation in self.evaluations], np.float64)
        return None if scores is None else Learning(steps, scores)


def read_result(
    folder: Path, curve: str = CURVE, measure: Measure = RETURNS, config: TrainConfig | None = None
) -> RunResult | None:
    """Return the results of a run, or None if it was not evaluated.

    Args:
        folder: The run folder, or the place of a recorded run beside `runs.jsonl`.
        curve: Name of the evaluation's file in the folder.
        measure: What is read.
        config: The config of the run. None: that of the folder.

    Raises:
        ConfigError: If a file is damaged, the evaluation pools several runs or has no raw values, or it does not have
            the measure.
    """
    file = folder / curve
    if not file.is_file():
        record = recorded(folder) if curve == CURVE else None
        if record is None:
            return None
        name = folder / RECORD if (folder / RECORD).is_file() else folder
        return result_of(record, folder, config or read_config(folder), f"paths: '{name}'", measure)
    report = read_report(file)
    if report.seeds != 1 or report.raw_returns is None:
        reason = f"pools {report.seeds} runs" if report.seeds != 1 else "has no raw values (an early version wrote it)"
        raise ConfigError(
            f"paths: '{file}' {reason}; allowed: the evaluation of one run, by: relic-jax evaluate {folder}"
        )
    values, agents = measure.by_task(report), measure.agents(report)
    start, later = report.expert_episodes, measure.later(report.expert_episodes, report.episodes)
    return RunResult(
        folder,
        config or read_config(folder),
        Protocol.of(report),
        curve=values.mean(0),
        first=values[:, start],
        later=values[:, later].mean(1),
        returns=values,
        evaluations=read_evaluations(folder / EVALUATIONS),
        measure=measure,
        references=measure.references(report.reference_returns, agents, later),
        agents=agents,
    )


def read_report(file: Path) -> Report:
    """Read a JSON result of `relic-jax evaluate`. Raises ConfigError if it is none."""
    try:
        return Report.from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        allowed = "a result of relic-jax evaluate"
        raise ConfigError(f"paths: '{file}' is no evaluation ({error}); allowed: {allowed}") from None


def record_of(result: RunResult, measured: RunResult | None = None) -> dict[str, Any]:
    """Return the numbers of a run from which `result_of` restores its result, without `returns`, as plain values.

    Args:
        result: The returns of the run.
        measured: The measure of its study, if that is another one.
    """
    shared = {name: result.evaluations[0][name] for name in _DURING} if result.evaluations else {}
    learning = {kind: [evaluation.get(kind) for evaluation in result.evaluations] for kind in _LEARNING}
    record = {
        "protocol": dataclasses.asdict(result.protocol),
        "return": result.curve.tolist(),
        **_tasks(result),
        "learning": shared | {kind: values for kind, values in learning.items() if None not in values},
    }
    runs = (result,) if measured is None else (result, measured)
    names = [name for name in result.agents if all(name in run.agents for run in runs)]
    record["reference_agents"] = {x: {run.measure.metric: run.agents[x].tolist() for run in runs} for x in names}
    if measured is not None:
        about = {"metric": measured.measure.metric, "episodes": measured.measure.text}
        record["measure"] = about | _tasks(measured)
    return record


def _tasks(result: RunResult) -> dict[str, list[float]]:
    return {"first_by_task": result.first.tolist(), "later_by_task": result.later.tolist()}


_DURING = ("tasks", "episodes", "reference_returns")
"""Values that all evaluations during a training share."""
_LEARNING = ("env_steps", "first", "first_by_task", "later_by_task")
"""Values of each."""


def recorded(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run: `record.json` in its folder, or its line in `runs.jsonl` beside it. None: neither.

    Raises:
        ConfigError: If the file is damaged.
    """
    own, shared = folder / RECORD, folder.with_name(RECORDS)
    try:
        if own.is_file():
            return _object(own.read_bytes())
        if not shared.is_file():
            return None
        lines = [_object(line) for line in shared.read_bytes().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        name = own if own.is_file() else shared
        raise ConfigError(f"paths: '{name}' is no record of a run ({error}); allowed: one of runs.jsonl") from None
    return next((line for line in lines if line.get("run") == folder.name), None)


def _object(text: bytes) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def result_of(record: Any, folder: Path, config: TrainConfig, name: str, measure: Measure = RETURNS) -> RunResult:
    """Return the result from which `record_of` made a record.

    Args:
        record: The record.
        folder: The run folder of the result.
        config: The config of the run.
        name: The name of the record, for errors.
        measure: What is read.

    Raises:
        ConfigError: If the record does not have the content of `record_of`, or not the measure.
    """
    try:
        protocol = Protocol(**record["protocol"])
        if protocol.env_options is not None:
            protocol = dataclasses.replace(protocol, env_options=Options(protocol.env_options))
        later = measure.later(protocol.expert_episodes, protocol.episodes)
        curve = np.asarray(record["return"], np.float64)
        first, rest = (np.asarray(record[part], np.float64) for part in ("first_by_task", "later_by_task"))
        if measure != RETURNS:
            known = {RETURN: record["return"], **record.get("metrics", {})}
            require(measure.metric in known, "metric", measure.metric, f"{', '.join(known)} ({name})")
            curve = np.asarray(known[measure.metric], np.float64)
            first, rest = _by_task(record, measure) or (
                curve[protocol.expert_episodes][None],
                curve[later].mean()[None],
            )
        learning = record["learning"]
        shared = {name: learning[name] for name in _DURING if name in learning}
        kinds = [kind for kind in _LEARNING if kind in learning]
        rows = zip(*(learning[kind] for kind in kinds), strict=True)
        evaluations = [shared | dict(zip(kinds, row, strict=True)) for row in rows]
        kept = record.get("reference_agents", {}).items()
        agents = {agent: np.asarray(curves[measure.metric]) for agent, curves in kept if measure.metric in curves}
    except ConfigError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{name} is no record of a run ({error}); allowed: one of runs.jsonl") from None
    references = measure.references(protocol.reference_returns, agents, later)
    return RunResult(folder, config, protocol, curve, first, rest, None, evaluations, measure, references, agents)


def _by_task(record: Mapping[str, Any], measure: Measure) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first and the later episodes by task if the record has those of the measure."""
    kept = record.get("measure")
    if kept is None or (kept["metric"], kept["episodes"]) != (measure.metric, measure.text):
        return None
    return np.asarray(kept["first_by_task"], np.float64), np.asarray(kept["later_by_task"], np.float64)


def check_comparable(results: Sequence[RunResult]) -> None:
    """Raise ConfigError, with the first field that differs, if runs were not evaluated alike in the same tasks."""
    first = results[0]
    for result in results[1:]:
        for field, own, others in _pairs(result, first):
            if not agree(field, own, others):
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
