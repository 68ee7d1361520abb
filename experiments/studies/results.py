"""The results of a study that are committed: tables, figures, and a few numbers of every run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError
from relic_jax.experiments import folders
from relic_jax.experiments.attention import KINDS
from relic_jax.experiments.compare import run_folders
from relic_jax.experiments.compare.measure import RETURNS, Measure
from relic_jax.experiments.compare.results import CURVE, RECORD, read_result, record_of
from relic_jax.experiments.sweep.evaluation_report import attention_shares
from relic_jax.experiments.sweep.folder import STUDY
from relic_jax.experiments.sweep.reuse import ORIGIN
from relic_jax.experiments.sweep.study import read_study
from relic_jax.files import write_atomically
from relic_jax.metrics import read_lines

COPIED = (
    *("study.toml", "table.md", "table.csv", "figure.png"),
    *("evaluations.md", "evaluations.csv", "evaluations.png", "attention.md", "attention.png"),
)
"""Files of a study's folder that are copied."""
DIGITS = 4
"""Significant digits of the numbers in runs.jsonl."""


def write_results(study: Path, out: Path) -> list[Path]:
    """Copy the tables and figures of a study, and write `runs.jsonl` with one line per run.

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
    measure = read_study(study / STUDY).measure
    lines = [line for run in run_folders([study]) if (line := run_line(run, measure)) is not None]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    write_atomically(out / "runs.jsonl", text)
    return [out / name for name in (*copied, "runs.jsonl")]


def run_line(run: Path, measure: Measure = RETURNS) -> dict[str, Any] | None:
    """Return the numbers of a run that are kept. None if it was not evaluated.

    They are those of `compare.record_of`, also for the study's measure, and means of `metrics` by episode.
    `evaluations` and `evaluation_metrics` are the returns and the metrics by episode of the study's own evaluations,
    `attention` the shares of attention by kind and episode.
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
    measured = None if measure == RETURNS else read_result(run, measure=measure)
    line |= _short(record_of(result, measured)) | {"metrics": _metrics(run / CURVE)}
    if (run / "attention.json").is_file():
        line["attention"] = dict(zip(KINDS, _short(attention_shares(run / "attention.json")), strict=True))
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
