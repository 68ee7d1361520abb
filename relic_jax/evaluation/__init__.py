"""In-context evaluation: acting with frozen weights, statistics over tasks and seeds, and the report of a curve.

Names are imported on first use, so that reading a report does not import the code for acting.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relic_jax.evaluation.acting import Curves, in_context_curves
    from relic_jax.evaluation.report import Curve, Report, summarise, to_csv
    from relic_jax.evaluation.statistics import percentile_over_tasks
    from relic_jax.evaluation.tasks import check_evaluated, evaluated_tasks, one_task

_MODULES = {
    "Curve": "report",
    "Curves": "acting",
    "Report": "report",
    "check_evaluated": "tasks",
    "evaluated_tasks": "tasks",
    "in_context_curves": "acting",
    "one_task": "tasks",
    "percentile_over_tasks": "statistics",
    "summarise": "report",
    "to_csv": "report",
}

__all__ = [
    "Curve",
    "Curves",
    "Report",
    "check_evaluated",
    "evaluated_tasks",
    "in_context_curves",
    "one_task",
    "percentile_over_tasks",
    "summarise",
    "to_csv",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
