"""The numbers of a comparison, and its files: table.md, table.csv and figure.png."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from relic_jax.config import ConfigError, Options
from relic_jax.environment.reference_agents import FORGETFUL, REMEMBERING
from relic_jax.evaluation import aggregates
from relic_jax.evaluation.aggregates import Interval, interval
from relic_jax.evaluation.learning_speed import THRESHOLD, LearningSpeed, learning_speed
from relic_jax.evaluation.report import decimals
from relic_jax.experiments.compare import figure
from relic_jax.experiments.compare.measure import RETURN, RETURNS, Measure
from relic_jax.experiments.compare.methods import Method
from relic_jax.experiments.compare.results import CURVE, RunResult, check_comparable, read_result
from relic_jax.files import write_atomically
from relic_jax.plotting import write_figure
from relic_jax.validation import did_you_mean


@dataclasses.dataclass(frozen=True)
class Row:
    """The numbers of one method. Intervals are over seeds and tasks.

    Attributes:
        name: The method.
        seeds: Number of runs.
        first: Mean of the first episode.
        later: Mean of the later episodes.
        iqm: Interquartile mean of the later episodes' normalized scores; of the values without references.
        gap: Optimality gap of the same scores. None without references.
        improvement: Probability that a run of this method is better than one of the baseline. None: the baseline.
        speed: Environment steps to 80% of optimal. None without evaluations during training or an optimal return.
        by_seed: Means of the later episodes of each seed, in the order of its runs.
    """

    name: str
    seeds: int
    first: Interval
    later: Interval
    iqm: Interval
    gap: Interval | None
    improvement: Interval | None
    speed: LearningSpeed | None
    by_seed: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods that were evaluated alike in the same tasks.

    Attributes:
        methods: The methods with an evaluated run.
        results: The results of their runs.
        rows: Their numbers.
        baseline: Name of the method that others are compared with.
        missing: Folders of runs without an evaluation.
    """

    methods: tuple[Method, ...]
    results: tuple[tuple[RunResult, ...], ...]
    rows: tuple[Row, ...]
    baseline: str
    missing: tuple[Path, ...] = ()

    @property
    def normalized(self) -> bool:
        """Whether scores are normalized."""
        return self.rows[0].gap is not None

    def markdown(self) -> str:
        """Return the table with its explanation."""
        lines = [_line(_header(self)), _line(["---"] * len(_header(self)))]
        digits = _digits(self.results)
        lines += [_line(_cells(row, digits)) for row in self.rows]
        settings = settings_table(self)
        return "\n".join([*lines, "", "\n\n".join(_notes(self)), *(["", settings] if settings else [""])])

    def csv(self) -> str:
        """Return the table with one column per number. Steps that were not reached are `inf`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [*_numbers(self.rows[0], self.methods[0])], lineterminator="\n")
        writer.writeheader()
        for row, method in zip(self.rows, self.methods, strict=True):
            writer.writerow(_numbers(row, method))
        return text.getvalue()

    def figure(self) -> Figure:
        """Draw in-context curves, learning curves and performance profiles."""
        return figure.draw([row.name for row in self.rows], self.results)


def compare(
    methods: Sequence[Method], baseline: str | None = None, curve: str = CURVE, measure: Measure = RETURNS
) -> Comparison:
    """Compare methods.

    Args:
        methods: The methods. Runs without an evaluation are left out and named in the result.
        baseline: Name of a method. None: the first.
        curve: Name of the evaluation's file in each run folder.
        measure: What is compared.

    Raises:
        ConfigError: If no run was evaluated, runs cannot be compared, a file is damaged, or there is no such baseline,
            metric or episode.
    """
    found, missing = [], []
    for method in methods:
        configs = method.configs or [None] * len(method.runs)
        read = [(x, read_result(x, curve, measure, config)) for x, config in zip(method.runs, configs, strict=True)]
        missing += [run for run, result in read if result is None]
        if results := tuple(result for _, result in read if result is not None):
            found.append((method, results))
    if not found:
        hint = f"relic-jax evaluate {missing[0]}" if missing else "relic-jax train"
        some = ", ".join(f"'{run}'" for run in missing[:3]) or "none"
        raise ConfigError(f"paths: no run has a {curve} ({some}); allowed: evaluated runs (to make one: {hint})")
    check_comparable([result for _, results in found for result in results])
    found = [(method, alike) for (method, _), alike in zip(found, _alike([x for _, x in found]), strict=True)]
    names = [method.name for method, _ in found]
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        hint = did_you_mean(baseline, names, separator="-")
        raise ConfigError(f"baseline is {baseline!r}; allowed: {', '.join(map(repr, names))}{hint}")
    scores = {method.name: _scores(results) for method, results in found}
    rows = tuple(_row(method, results, scores, baseline) for method, results in found)
    kept = tuple(method for method, _ in found)
    return Comparison(kept, tuple(results for _, results in found), rows, baseline, tuple(missing))


def _alike(methods: Sequence[tuple[RunResult, ...]]) -> list[tuple[RunResult, ...]]:
    """Return the results of each method with the references of the first run that has them.

    If some runs are recorded without values by task, all have means over tasks.
    """
    runs = [result for results in methods for result in results]
    known = next((result for result in runs if result.agents), runs[0])
    by_task = len({result.later.shape for result in runs}) == 1
    alike = [result if by_task else result.over_tasks() for result in runs]
    alike = [dataclasses.replace(result, references=known.references, agents=known.agents) for result in alike]
    rest = iter(alike)
    return [tuple(next(rest) for _ in results) for results in methods]


def _scores(results: Sequence[RunResult]) -> np.ndarray:
    """Return scores [seeds, tasks] of the later episodes, normalized if there are references. More is better."""
    values = np.stack([result.later for result in results])
    scores = results[0].measure.normalized(values, results[0].references)
    return results[0].measure.sign * values if scores is None else scores


def _row(method: Method, results: Sequence[RunResult], scores: Mapping[str, np.ndarray], baseline: str) -> Row:
    own, measure = scores[method.name], results[0].measure
    is_normalized = measure.normalized(own, results[0].references) is not None
    learning = [result.learning() for result in results]
    known = [one for one in learning if one is not None]
    others = None if method.name == baseline else scores[baseline]
    return Row(
        name=method.name,
        seeds=len(results),
        first=_mean(np.stack([result.first for result in results])),
        later=_mean(np.stack([result.later for result in results])),
        iqm=interval(aggregates.iqm, own if is_normalized else measure.sign * own),
        gap=interval(aggregates.optimality_gap, own) if is_normalized else None,
        improvement=None if others is None else interval(aggregates.probability_of_improvement, own, others),
        speed=learning_speed(known) if len(known) == len(learning) else None,
        by_seed=tuple(float(result.later.mean()) for result in results),
    )


def _mean(values: np.ndarray) -> Interval:
    """Return the mean of values [seeds, tasks] with its interval, Student's over seeds if there is one "task"."""
    return aggregates.student_interval(values[:, 0]) if values.shape[1] == 1 else interval(aggregates.mean, values)


def _header(comparison: Comparison) -> list[str]:
    result = comparison.results[0][0]
    metric, later = result.measure.metric, result.later_episodes
    what = "" if metric == RETURN else f"{metric}, "
    chosen = "later episodes" if result.measure.episodes is None else f"episodes {later.start + 1}–{later.stop}"
    score = "IQM" if comparison.normalized else f"IQM of {metric if metric != RETURN else 'returns'}"
    names = ["method", "seeds", f"{what}first episode", f"{what}{chosen}", score, "optimality gap"]
    return [*names, f"P(better than {comparison.baseline})", f"steps to {THRESHOLD:.0%}"]


def _cells(row: Row, digits: int) -> list[str]:
    values = [_text(x, f".{digits}f") for x in (row.first, row.later)]
    scores = [_text(row.iqm, f".{digits if row.gap is None else 3}f"), _text(row.gap, ".3f")]
    speed = "–" if row.speed is None else str(row.speed)
    return [row.name, str(row.seeds), *values, *scores, _text(row.improvement, ".2f"), speed]


def _text(value: Interval | None, form: str) -> str:
    return "–" if value is None else f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _digits(results: Sequence[Sequence[RunResult]]) -> int:
    return max(decimals(runs[0].curve, runs[0].references) for runs in results)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _notes(comparison: Comparison) -> list[str]:
    protocol = comparison.results[0][0].protocol
    env = protocol.env + (protocol.env_options or Options()).text
    about = f"{env}, {protocol.tasks} {protocol.split} tasks ({protocol.split_hash})"
    lines = ["; ".join([about, *_references(comparison)]) + "."]
    intervals = "95% bootstrap intervals over seeds and tasks."
    if len(comparison.results[0][0].later) < protocol.tasks:
        why = "recorded runs keep no values by task"
        intervals = f"95% intervals over seeds only ({why}): Student's for means, bootstrap (too narrow) for the rest."
    lines.append(f"{_scores_note(comparison)}{intervals} {_seeds_note(comparison)}".rstrip())
    if any(row.speed is not None for row in comparison.rows):
        what = f"Environment steps until the return of the later episodes reaches a normalized score of {THRESHOLD:g}"
        during = next(run.evaluations[0] for runs in comparison.results for run in runs if run.evaluations)
        size = f"{during['tasks']} held-out tasks, {during['episodes']} episodes"
        lines.append(f"{what} in the evaluations during training ({size}): the median over seeds; > N: not within N.")
    if comparison.missing:
        lines.append("Not evaluated, and left out: " + ", ".join(str(run) for run in comparison.missing) + ".")
    return lines


def _references(comparison: Comparison) -> list[str]:
    """Return what the values of the table can be compared with: random actions, the expert, reference agents."""
    result, digits = comparison.results[0][0], _digits(comparison.results)
    if result.measure.metric == RETURN:
        known = {name: result.protocol.reference_returns.get(name) for name in ("random", "optimal")}
        found = [f"{name} {value:.{digits}f}" for name, value in known.items() if value is not None]
    else:
        found = []
    found += [f"{name} {curve[result.later_episodes].mean():.{digits}f}" for name, curve in result.agents.items()]
    return [", ".join(found)] if found else []


def _scores_note(comparison: Comparison) -> str:
    if not comparison.normalized:
        return ""
    if comparison.results[0][0].measure.metric == RETURN:
        return "Scores are (return − random) / (optimal − random) of the later episodes. "
    return f"Scores are 0 for the {FORGETFUL} and 1 for the {REMEMBERING} in the same episodes. "


def settings_table(comparison: Comparison) -> str:
    """Return a table of the settings that differ between the methods. Empty if there are none."""
    fields = list(dict.fromkeys(name for method in comparison.methods for name in method.settings))
    if len(comparison.methods) < 2 or not fields:
        return ""
    header = ["setting", *(method.name for method in comparison.methods)]
    lines = [_line(header), _line(["---"] * len(header))]
    for name in fields:
        lines.append(_line([f"`{name}`", *(str(method.settings.get(name)) for method in comparison.methods)]))
    return "\n".join([*lines, ""])


def _seeds_note(comparison: Comparison) -> str:
    single = [row.name for row in comparison.rows if row.seeds == 1]
    return f"One seed, so the interval is over tasks only: {'; '.join(single)}." if single else ""


def _numbers(row: Row, method: Method) -> dict[str, Any]:
    """Return the cells of the CSV file by column."""
    speed = row.speed
    intervals = {"first": row.first, "later": row.later, "iqm": row.iqm, "optimality_gap": row.gap}
    intervals |= {"probability_of_improvement": row.improvement}
    intervals |= {"steps_to_80": speed and speed.median, "restricted_mean_steps_to_80": speed and speed.restricted_mean}
    found: dict[str, Any] = {"method": row.name, "seeds": row.seeds}
    for name, value in intervals.items():
        ends = ("", "", "") if value is None else (f"{x:.6g}" if abs(x) < 1e5 else f"{x:.0f}" for x in value)
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
    found |= {"reached_80": "" if speed is None else speed.reached, "steps_limit": "" if speed is None else speed.limit}
    found["later_by_seed"] = " ".join(f"{x:.4g}" for x in row.by_seed)
    return found | {"runs": " ".join(run.name for run in method.runs)}


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write table.md, table.csv and figure.png to a folder, each atomically, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("table.md", "table.csv", "figure.png")]
    write_atomically(files[0], comparison.markdown())
    write_atomically(files[1], comparison.csv())
    write_figure(comparison.figure(), files[2])
    return files
