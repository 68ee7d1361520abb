"""The report of an in-context curve: the content of `curve.json` and of the `evaluation` in an export's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relic_jax.config import ConfigError, EvalConfig, Options
from relic_jax.environment.base import Environment, Split, num_tasks, split_hash
from relic_jax.evaluation.aggregates import mean_band
from relic_jax.evaluation.statistics import gain, later_gain, means_by_task, percentile_over_tasks, shortest
from relic_jax.validation import shown

if TYPE_CHECKING:
    from relic_jax.environment.reference_agents import AgentEpisodes
    from relic_jax.evaluation.acting import Curves

PARTS = ("mean", "low", "high")
OLD_KEYS = {"lines": "reference_returns"}
"""JSON keys of earlier versions and the keys that took their place."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """A mean over tasks and seeds with its 95% interval, E values each (`aggregates.mean_band`).

    Files of earlier versions have narrower intervals: tasks were drawn anew for each seed.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        p20: 20th percentile over tasks, averaged over seeds. None except for returns; earlier versions have none.
    """

    mean: list[float]
    low: list[float]
    high: list[float]
    p20: list[float] | None = None

    def to_json(self) -> dict[str, list[float]]:
        """Return plain values for JSON."""
        values: dict[str, list[float]] = {part: getattr(self, part) for part in PARTS}
        return values if self.p20 is None else values | {"p20": self.p20}

    @classmethod
    def from_json(cls, value: Any, field: str, *, finite: bool = False) -> Curve:
        """Read the result of `to_json`.

        Args:
            value: The JSON value.
            field: Its name, for errors.
            finite: Whether all numbers must be finite.

        Raises:
            ConfigError: If the value is no curve.
        """
        _require(isinstance(value, dict), field, value, "an object")
        for part in PARTS:
            numbers = value.get(part)
            fits = isinstance(numbers, list) and numbers and all(_is_number(x, finite) for x in numbers)
            fits = fits and len(numbers) == len(value["mean"])
            _require(fits, f"{field}.{part}", numbers, "a list of numbers, of the same length for mean, low and high")
        return cls(value["mean"], value["low"], value["high"], value.get("p20"))


@dataclasses.dataclass(frozen=True)
class AgentCurves:
    """The curves of a scripted agent with a memory, with intervals over tasks.

    Attributes:
        returns: Return per episode; `return` in JSON.
        success: Success rate per episode.
        metrics: `Environment.metrics` per episode.
    """

    returns: Curve
    success: Curve
    metrics: dict[str, Curve] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "return": self.returns.to_json(),
            "success": self.success.to_json(),
            "metrics": _plain(self.metrics),
        }

    @classmethod
    def from_json(cls, value: Any, field: str) -> AgentCurves:
        """Read the result of `to_json`. Raises ConfigError at the first value that does not fit."""
        _require(isinstance(value, dict), field, value, "an object")
        returns, success = (Curve.from_json(value.get(kind), f"{field}.{kind}", finite=True) for kind in KINDS)
        metrics = _curves(value.get("metrics", {}), f"{field.removeprefix('evaluation.')}.metrics")
        return cls(returns, success, metrics)


@dataclasses.dataclass(frozen=True)
class Report:
    """One in-context curve over all seeds, with intervals, references, raw values and provenance.

    Attributes:
        env: Name of the environment.
        split: "test" or "train".
        split_hash: `split_hash` of all tasks of the split.
        tasks: Number of tasks that were evaluated.
        seeds: Number of policies.
        env_options: Options of the environment that differ from their defaults. None: unknown (earlier versions).
        reference_returns: Mean returns of `random` actions and of the `optimal` expert (None without one) on the tasks.
        returns: Return per episode; `return` in JSON.
        success: Success rate per episode.
        episodes: Episodes per task, in one context.
        repeats: Trials per task.
        expert_episodes: First episodes, in which the scripted expert acts.
        expert_quality: Share of the expert's steps that take its action; the others are random.
        context_limit: The number of last steps that each layer sees. 0: those of the current episode. None: all.
        change_task_at: The episode, counted from 1, from which each trial continues in another task. None: one task.
        metrics: `Environment.metrics` per episode.
        gain: The last episode less the policy's first, in the same trial. One value.
        later_gain: The policy's third to last episodes less its first, for returns, successes and metrics. One value;
            None with fewer than three episodes.
        per_seed: Mean return of the first and of the later episodes of each policy.
        raw_returns: [seeds][tasks · repeats][episodes], task-major.
        raw_successes: The same for successes, 0 or 1.
        raw_metrics: The same for metrics, by name.
        reference_agents: `Environment.reference_agents` on the same tasks, by name. Empty without any.
        provenance: Checkpoints, training, command, commit, versions and device.
    """

    env: str
    split: str
    split_hash: str
    tasks: int
    seeds: int
    reference_returns: dict[str, float | None]
    returns: Curve
    success: Curve
    episodes: int
    env_options: Options | None = None
    repeats: int = 1
    expert_episodes: int = 0
    expert_quality: float = 1.0
    context_limit: int | None = None
    change_task_at: int | None = None
    metrics: dict[str, Curve] = dataclasses.field(default_factory=dict)
    gain: Curve | None = None
    later_gain: dict[str, Curve | None] | None = None
    per_seed: list[dict[str, float | None]] | None = None
    raw_returns: list[Any] | None = None
    raw_successes: list[Any] | None = None
    raw_metrics: dict[str, Any] | None = None
    reference_agents: dict[str, AgentCurves] = dataclasses.field(default_factory=dict)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def env_text(self) -> str:
        """The environment with its options, such as "house-objnav-small, pose house"."""
        return self.env + (self.env_options or Options()).text

    @property
    def digits(self) -> int:
        """Decimals of printed returns: 1, or 2 if all are smaller than 10."""
        return decimals(self.returns.mean, self.reference_returns)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON. Fields that an earlier version did not write are left out."""
        optional = {
            "env_options": None if self.env_options is None else dict(self.env_options),
            "gain": None if self.gain is None else self.gain.to_json(),
            "later_gain": None if self.later_gain is None else _plain(self.later_gain),
            "per_seed": self.per_seed,
            "raw_returns": self.raw_returns,
            "raw_successes": self.raw_successes,
            "raw_metrics": self.raw_metrics,
            "change_task_at": self.change_task_at,
            "expert_quality": None if self.expert_quality == 1 else self.expert_quality,
            "reference_agents": {name: agent.to_json() for name, agent in self.reference_agents.items()} or None,
        }
        return {
            "env": self.env,
            "split": self.split,
            "split_hash": self.split_hash,
            "episodes": self.episodes,
            "repeats": self.repeats,
            "tasks": self.tasks,
            "expert_episodes": self.expert_episodes,
            "context_limit": self.context_limit,
            "seeds": self.seeds,
            "reference_returns": self.reference_returns,
            "return": self.returns.to_json(),
            "success": self.success.to_json(),
            "metrics": _plain(self.metrics),
            **{name: value for name, value in optional.items() if value is not None},
            **self.provenance,
        }

    @classmethod
    def from_json(cls, value: Any) -> Report:
        """Read the result of `to_json`, also of earlier versions. Unknown keys are provenance.

        Raises:
            ConfigError: At the first field that does not fit.
        """
        _require(isinstance(value, dict), "evaluation", value, "an object")
        old = {new: key for key, new in OLD_KEYS.items() if key in value and new not in value}
        value = {OLD_KEYS.get(key, key): x for key, x in value.items()}
        curves = {kind: Curve.from_json(value.get(kind), f"evaluation.{kind}", finite=True) for kind in KINDS}
        lengths = [len(curve.mean) for curve in curves.values()]
        allowed = "as many numbers as evaluation.return.mean has"
        _require(lengths[0] == lengths[1], "evaluation.success.mean", curves["success"].mean, allowed)
        for name in ("env", "split", "split_hash"):
            _require(isinstance(value.get(name), str), f"evaluation.{name}", value.get(name), "text")
        counts = {"episodes": lengths[0], "repeats": 1, "expert_episodes": 0} | value
        for name in ("tasks", "episodes", "repeats", "seeds", "expert_episodes"):
            count = counts.get(name)
            _require(type(count) is int and count >= 0, f"evaluation.{name}", count, "a whole number, 0 or more")
        quality = value.get("expert_quality", 1.0)
        _require(_is_number(quality, True) and 0 <= quality <= 1, "evaluation.expert_quality", quality, "0 … 1")
        references = value.get("reference_returns")
        fits = isinstance(references, dict) and all(x is None or _is_number(x, True) for x in references.values())
        field = f"evaluation.{old.get('reference_returns', 'reference_returns')}"
        _require(fits, field, references, "an object of numbers and null")
        options = value.get("env_options")
        _require(options is None or isinstance(options, dict), "evaluation.env_options", options, "an object")
        own = {x.name for x in dataclasses.fields(cls)} - {"returns", "provenance"}
        fields = {name: counts[name] for name in counts.keys() & own} | {"success": curves["success"]}
        fields |= {"env_options": None if options is None else Options(options)}
        fields |= {"metrics": _curves(value.get("metrics", {}), "metrics")}
        fields |= {"gain": value.get("gain") and Curve.from_json(value["gain"], "evaluation.gain")}
        fields |= {"later_gain": value.get("later_gain") and _curves(value["later_gain"], "later_gain")}
        fields |= {"reference_agents": _agents(value.get("reference_agents", {}), lengths[0])}
        provenance = {name: x for name, x in value.items() if name not in own | {"return"}}
        return cls(returns=curves["return"], provenance=provenance, **fields)


def decimals(returns: Iterable[float], reference_returns: Mapping[str, float | None]) -> int:
    """Return the decimals of printed returns: 1, or 2 if all returns and reference returns are smaller than 10."""
    values = [*returns, *(x for x in reference_returns.values() if x is not None)]
    return 2 if all(abs(x) < 10 for x in values) else 1


KINDS = ("return", "success")
"""The JSON keys of the two curves that every report has."""


def agree(field: str, own: Any, other: Any) -> bool:
    """Return whether a field of two reports has the same value. Unknown options of an environment fit any others."""
    return own == other or (field == "env_options" and None in (own, other))


def is_report(value: Any) -> bool:
    """Return whether a JSON value is a report."""
    try:
        Report.from_json(value)
    except ConfigError:
        return False
    return True


def _plain(curves: Mapping[str, Curve | None]) -> dict[str, Any]:
    return {name: curve and curve.to_json() for name, curve in curves.items()}


def _curves(value: Any, field: str) -> dict[str, Any]:
    _require(isinstance(value, dict), f"evaluation.{field}", value, "an object")
    return {name: x and Curve.from_json(x, f"evaluation.{field}.{name}") for name, x in value.items()}


def _agents(value: Any, episodes: int) -> dict[str, AgentCurves]:
    field = "evaluation.reference_agents"
    _require(isinstance(value, dict), field, value, "an object")
    agents = {name: AgentCurves.from_json(x, f"{field}.{name}") for name, x in value.items()}
    for name, agent in agents.items():
        curves = (agent.returns, agent.success, *agent.metrics.values())
        fits = all(curve is not None and len(curve.mean) == episodes for curve in curves)
        _require(fits, f"{field}.{name}", value[name], f"curves of {episodes} episodes, as evaluation.return")
    return agents


def _is_number(value: Any, finite: bool) -> bool:
    return type(value) in (int, float) and (not finite or abs(value) < 1e300)


def _require(condition: Any, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {shown(value)}; allowed: {allowed}")


def summarise(
    env: Environment,
    split: Split,
    config: EvalConfig,
    curves: Sequence[Curves],
    reference_returns: Mapping[str, float | None],
    provenance: Mapping[str, Any],
    agents: Mapping[str, AgentEpisodes] | None = None,
) -> Report:
    """Make the report of the curves of one or more seeds.

    Args:
        env: The environment.
        split: The split that was evaluated.
        config: The evaluation.
        curves: One for each seed.
        reference_returns: Mean returns of `random` actions and of the `optimal` expert (None without one).
        provenance: Further JSON values for `Report.provenance`.
        agents: The episodes of the environment's reference agents in the same trials, by name.
    """
    tasks, first = num_tasks(env.tasks(split)), config.expert_episodes
    tasks = tasks if config.tasks is None else min(tasks, config.tasks)

    def mean(values: Sequence[np.ndarray]) -> Curve:
        low, high = mean_band(means_by_task(values, tasks))
        average = np.stack(values).mean((0, 1), dtype=np.float64)
        return Curve(average.tolist(), low.tolist(), high.tolist())

    def later(values: Sequence[np.ndarray]) -> Curve | None:
        gains = [x for v in values if (x := later_gain(v, first)) is not None]
        return mean(gains) if gains else None

    returns, successes = [c.returns for c in curves], [c.successes.astype(np.float32) for c in curves]
    metrics = {name: [c.metrics[name] for c in curves] for name in curves[0].metrics}
    kinds = {"return": returns, "success": successes}
    return Report(
        env=env.name,
        split=split,
        split_hash=split_hash(env.tasks(split)),
        tasks=tasks,
        seeds=len(curves),
        reference_returns=dict(reference_returns),
        returns=dataclasses.replace(mean(returns), p20=percentile_over_tasks(returns, tasks, 20.0).tolist()),
        success=mean(successes),
        episodes=config.episodes,
        repeats=config.repeats,
        expert_episodes=config.expert_episodes,
        expert_quality=config.expert_quality,
        context_limit=config.context_limit,
        change_task_at=config.change_task_at,
        metrics={name: mean(values) for name, values in metrics.items()},
        gain=mean([gain(r, first) for r in returns]),
        later_gain={name: later(v) for name, v in (kinds | metrics | kinds).items()},  # no metric replaces ours
        per_seed=[_first_and_later(r, first) for r in returns],
        raw_returns=[shortest(r) for r in returns],
        raw_successes=[s.astype(int).tolist() for s in successes],
        raw_metrics={name: [shortest(v) for v in values] for name, values in metrics.items()},
        reference_agents={name: _agent_curves(agent, mean) for name, agent in (agents or {}).items()},
        provenance=dict(provenance),
    )


def _agent_curves(agent: AgentEpisodes, mean: Callable[[Sequence[np.ndarray]], Curve]) -> AgentCurves:
    """Return the curves of the episodes that a reference agent played."""
    metrics = {name: mean([values]) for name, values in agent.metrics.items()}
    return AgentCurves(mean([agent.returns]), mean([agent.successes.astype(np.float32)]), metrics)


def _first_and_later(returns: np.ndarray, first: int) -> dict[str, float | None]:
    """Return the mean return of the policy's first episode, which may have to explore, and of all later ones."""
    later = returns[:, first + 1 :]
    return {"first": float(returns[:, first].mean()), "later": float(later.mean()) if later.shape[1] else None}


def to_csv(report: Report) -> str:
    """Return the curves as CSV, one row per in-context episode."""
    kinds = {"return": report.returns, "success": report.success}
    curves = kinds | report.metrics | kinds  # no metric replaces ours
    series = {f"{kind}_{part}": getattr(curve, part) for kind, curve in curves.items() for part in PARTS}
    if report.returns.p20 is not None:
        series["return_p20"] = report.returns.p20
    rows = [",".join(["episode", *series])]
    for index in range(len(report.returns.mean)):
        rows.append(f"{index + 1}," + ",".join(f"{values[index]:.6g}" for values in series.values()))
    return "\n".join(rows) + "\n"
