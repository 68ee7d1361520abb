"""Results that were read from a file: whether they have the form that figures and model cards need."""

from __future__ import annotations

from typing import Any

from relic_jax.config import ConfigError
from relic_jax.validation import shown

PARTS = ("mean", "low", "high")
COUNTS = ("tasks", "episodes", "repeats", "seeds", "expert_episodes")


def check_evaluation(summary: Any) -> None:
    """Raises ConfigError where a JSON value is neither null nor the `evaluation` of a config.json.

    Names the first field that does not fit.
    """
    if summary is None:
        return
    _require(isinstance(summary, dict), "evaluation", summary, "an object or null")
    for kind in ("return", "success"):
        curve = summary.get(kind)
        _require(isinstance(curve, dict), f"evaluation.{kind}", curve, "an object")
        for part in PARTS:
            values = curve.get(part)
            fits = isinstance(values, list) and values and all(map(_is_number, values))
            fits = fits and len(values) == len(curve["mean"])
            _require(fits, f"evaluation.{kind}.{part}", values, "a list of numbers, as many in each")
    _require(
        len(summary["return"]["mean"]) == len(summary["success"]["mean"]),
        "evaluation.success.mean",
        summary["success"]["mean"],
        "as many numbers as evaluation.return.mean has",
    )
    for name in ("env", "split", "split_hash"):
        _require(isinstance(summary.get(name), str), f"evaluation.{name}", summary.get(name), "text")
    for name in COUNTS:
        value = summary.get(name)
        _require(type(value) is int and value >= 0, f"evaluation.{name}", value, "a whole number, 0 or more")
    lines = summary.get("lines")
    fits = isinstance(lines, dict) and all(value is None or _is_number(value) for value in lines.values())
    _require(fits, "evaluation.lines", lines, "an object of numbers and null")


def is_evaluation(summary: Any) -> bool:
    """Whether `check_evaluation` accepts an object."""
    try:
        check_evaluation(summary)
    except ConfigError:
        return False
    return summary is not None


def check_training(training: dict[str, Any]) -> None:
    """Raises ConfigError where what a config.json says of the training cannot be."""
    for name in ("env_steps", "seconds"):
        value = training.get(name)
        fits = value is None or (_is_number(value) and 0 <= value < 2**63)
        _require(fits, f"training.{name}", value, "a number, 0 or more and below 2^63")
    for name in ("command", "commit", "device", "jax", "run", "preset"):
        value = training.get(name)
        _require(value is None or isinstance(value, str), f"training.{name}", value, "text")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _require(condition: Any, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {shown(value)}; allowed: {allowed}")
