"""The results of a study that are committed: tables, figures, and a few numbers of every run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError
from relic_jax.experiments import folders
from relic_jax.experiments.compare import run_folders
from relic_jax.experiments.compare.results import CURVE, RunResult, read_result
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
    lines = [line for run in run_folders([study]) if (line := run_line(run)) is not None]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    write_atomically(out / "runs.jsonl", text)
    return [out / name for name in (*copied, "runs.jsonl")]


def run_line(run: Path) -> dict[str, Any] | None:
    """Return the numbers of a run that are kept. None if it was not evaluated.

    Returns are means over repeats: `return` by episode, `first_by_task` and `later_by_task`. `metrics` are means by
    episode. `learning` has the returns of the evaluations during training, `evaluations` the returns by episode of the
    study's own evaluations.
    """
    result = read_result(run)
    if result is None:
        return None
    origin = folders.read_origin(run)
    line = {"run": run.name, "seed": result.config.seed, "steps_per_second": _speed(run)}
    line |= {name: origin[name] for name in ("command", "commit", "jax", "device", "copied_from") if name in origin}
    line |= {"return": _short(result.returns.mean(0)), "first_by_task": _short(result.first)}
    line |= {"later_by_task": _short(result.later), "metrics": _metrics(run), "learning": _learning(result)}
    return line | {"evaluations": _evaluations(run)}


def _metrics(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / CURVE).read_text(encoding="utf-8")).get("metrics", {})
    return {name: _short(values["mean"]) for name, values in metrics.items()}


def _learning(result: RunResult) -> dict[str, Any]:
    kinds = ("env_steps", "first", "later_by_task")
    return {kind: [_short(evaluation.get(kind)) for evaluation in result.evaluations] for kind in kinds}


def _evaluations(run: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(run.glob("evaluate-*.json")):
        try:
            result = read_result(run, file.name)
        except ConfigError:  # another program wrote it
            continue
        if result is not None and file.name != CURVE:
            found[file.stem.removeprefix("evaluate-")] = _short(result.returns.mean(0))
    return found


def _speed(run: Path) -> float | None:
    """Return the environment steps per second over the whole run, without compilation."""
    try:
        record = read_lines(run / "timing.jsonl")[-1]
        return _short(float(record["env_steps"]) / float(record["seconds"]))
    except (OSError, ValueError, LookupError, ZeroDivisionError):
        return None


def _short(value: Any) -> Any:
    """Round numbers, also in lists and arrays, to a few significant digits."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_short(x) for x in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
