"""The results of a study that are committed: tables, figures, and a few numbers of every run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from relic_jax.config import ConfigError
from relic_jax.experiments import folders
from relic_jax.experiments.compare import run_folders
from relic_jax.experiments.compare.results import CURVE, RECORD, read_result, record_of
from relic_jax.experiments.sweep.reuse import ORIGIN
from relic_jax.files import write_atomically
from relic_jax.metrics import read_lines

COPIED = (
    *("study.toml", "table.md", "table.csv", "figure.png"),
    *("evaluations.md", "evaluations.csv", "evaluations.png", "attention.md", "attention.png"),
)
"""Files of a study's folder that are copied."""
DIGITS = 4
"""Significant digits of the numbers in runs.jsonl."""
LATER = 6
"""The episode, counted from 1, from which metrics.md averages later episodes."""


def write_results(study: Path, out: Path) -> list[Path]:
    """Copy the tables and figures of a study, and write `runs.jsonl` with one line per run and `metrics.md`.

    Args:
        study: The study's folder.
        out: The folder to write.

    Returns:
        The files in `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    copied = [name for name in COPIED if (study / name).is_file()]
    for name in copied:
        shutil.copyfile(study / name, out / name)
    lines = [line for run in run_folders([study]) if (line := run_line(run)) is not None]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    write_atomically(out / "runs.jsonl", text)
    write_atomically(out / "metrics.md", metrics_table(lines))
    return [out / name for name in (*copied, "runs.jsonl", "metrics.md")]


def metrics_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of the metrics of each method, with Student's 95% intervals over seeds.

    Args:
        lines: The lines of `runs.jsonl`.
    """
    table = [
        "| method | metric | seeds | episode 1 | later episodes | later episodes, by seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    methods: dict[str, list[dict[str, list[float]]]] = {}
    for line in lines:
        methods.setdefault(line["run"].rpartition("_seed")[0], []).append(line["metrics"])
    for method, runs in methods.items():
        table += [f"| {method} | {' | '.join(row)} |" for row in _metric_rows(runs)]
    note = f"Means ± half of Student's 95% interval over seeds. Later episodes: from episode {LATER} on, or the last."
    return "\n".join([*table, "", note, ""])


def _metric_rows(runs: Sequence[dict[str, list[float]]]) -> Iterator[list[str]]:
    """Yield the cells of each metric of one method: its name, the number of seeds, the numbers."""
    for name in runs[0]:
        first = np.asarray([run[name][0] for run in runs])
        later = np.asarray([np.mean(run[name][LATER - 1 :] or run[name][-1:]) for run in runs])
        yield [name, str(len(runs)), _over_seeds(first), _over_seeds(later), ", ".join(f"{x:.1f}" for x in later)]


def _over_seeds(values: np.ndarray) -> str:
    """Return the mean of values [seeds] with half of its interval, or the mean alone if there is one seed."""
    mean = f"{values.mean():.1f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {half:.1f}"


def run_line(run: Path) -> dict[str, Any] | None:
    """Return the numbers of a run that are kept. None if it was not evaluated.

    `protocol`, `return` by episode, `first_by_task`, `later_by_task` and `learning` are those of `compare.record_of`.
    `metrics` are means by episode. `evaluations` and `evaluation_metrics` are the returns and the metrics by episode of
    the study's own evaluations.
    """
    if (run / RECORD).is_file():
        record: dict[str, Any] = json.loads((run / RECORD).read_bytes())
        return {"run": run.name} | {name: value for name, value in record.items() if name != "run"}
    result = read_result(run)
    if result is None:
        return None
    origin = folders.read_origin(run)
    line = {"run": run.name, "seed": result.config.seed, "steps_per_second": _speed(run)}
    line |= {name: origin[name] for name in (*ORIGIN, "copied_from") if name in origin}
    evaluations = _evaluations(run)
    metrics = {name: _metrics(run / f"evaluate-{name}.json") for name in evaluations}
    line |= _short(record_of(result)) | {"metrics": _metrics(run / CURVE)}
    return line | {"evaluations": evaluations, "evaluation_metrics": metrics}


def _metrics(file: Path) -> dict[str, Any]:
    metrics = json.loads(file.read_text(encoding="utf-8")).get("metrics", {})
    return {name: _short(values["mean"]) for name, values in metrics.items()}


def _evaluations(run: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(run.glob("evaluate-*.json")):
        try:
            result = read_result(run, file.name)
        except ConfigError:  # another program wrote it
            continue
        if result is not None and file.name != CURVE:
            found[file.stem.removeprefix("evaluate-")] = _short(result.curve)
    return found


def _speed(run: Path) -> float | None:
    """Return the environment steps per second over the whole run, without compilation."""
    try:
        record = read_lines(run / "timing.jsonl")[-1]
        return _short(float(record["env_steps"]) / float(record["seconds"]))
    except (OSError, ValueError, LookupError, ZeroDivisionError):
        return None


def _short(value: Any) -> Any:
    """Round numbers, also in lists, objects and arrays, to a few significant digits."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: _short(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_short(x) for x in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
