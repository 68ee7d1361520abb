"""The side effects of training: console, JSON lines, TensorBoard, W&B. Fed with plain numbers between jitted calls."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TextIO

from relic_jax.config import ConfigError
from relic_jax.metrics import Record
from relic_jax.progress import duration, is_terminal


class Tracker(Protocol):
    """Receives one record per update. Records are deterministic; what depends on the clock comes separately."""

    def log(self, record: Record, clock: Record) -> None:
        """Takes one record."""

    def close(self) -> None:
        """Ends; nothing is logged after."""


class Console:
    """Progress for a person: a live line on a terminal, plain lines every few seconds elsewhere."""

    def __init__(self, total_steps: int, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self._total, self._stream = total_steps, stream or sys.stdout
        self._live = is_terminal(self._stream)
        self._interval = 0.2 if self._live else interval
        self._printed = -math.inf
        self._since: list[Record] = []

    def log(self, record: Record, clock: Record) -> None:
        """Prints a line about what came since the last one, unless that is recent."""
        self._since.append(record)
        now = time.monotonic()
        if now - self._printed < self._interval and record["env_steps"] < self._total:
            return
        self._printed = now
        line = self.line(combined(self._since), clock)
        self._since = []
        self._stream.write(f"\r\x1b[K{line}" if self._live else line + "\n")
        self._stream.flush()

    def line(self, record: Record, clock: Record) -> str:
        """One line: progress, speed, time left, return, success, losses."""
        steps = int(record["env_steps"])
        parts = [
            f"{steps:>9,}/{self._total:,} steps ({min(steps / self._total, 1):4.0%})",
            f"{clock['steps_per_second']:,.0f} steps/s",
            f"{duration(clock['seconds_left'])} left",
        ]
        if "return" in record:
            parts += [f"return {record['return']:.2f}", f"success {record['success']:.0%}"]
        parts += [f"{name} {record[key]:.3g}" for name, key in _LOSSES if key in record]
        return " · ".join(parts)

    def close(self) -> None:
        """Ends the live line."""
        if self._live:
            self._stream.write("\n")
            self._stream.flush()


_LOSSES = (("policy", "policy_loss"), ("value", "value_loss"), ("entropy", "entropy"))


class TensorBoard:
    """Scalars for TensorBoard (extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        self._writer = load_extra("tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def log(self, record: Record, clock: Record) -> None:
        """One scalar per number."""
        for name, value in {**record, **clock}.items():
            self._writer.add_scalar(name, value, int(record["env_steps"]))

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WandB:
    """Weights & Biases (extra `wandb`). The mode (online, offline) is the WANDB_MODE of the environment."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        wandb = load_extra("wandb")
        self._run = wandb.init(project="relic-jax", name=folder.name, dir=str(folder), config=config)

    def log(self, record: Record, clock: Record) -> None:
        """One step."""
        self._run.log({**record, **clock}, step=int(record["env_steps"]))

    def close(self) -> None:
        """Ends the W&B run."""
        self._run.finish()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, record: Record, clock: Record) -> None:
        """To each in turn."""
        for tracker in self._trackers:
            tracker.log(record, clock)

    def close(self) -> None:
        """Each in turn."""
        for tracker in self._trackers:
            tracker.close()


_MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def load_extra(extra: str) -> Any:
    """The module behind an extra. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(_MODULES[extra])
    except ImportError:
        raise ConfigError(f"track is {extra!r}; it needs: pip install 'relic-jax[{extra}]'") from None


def combined(records: list[Record]) -> Record:
    """Several records as one: means, of `return` and `success` over their episodes; the newest `env_steps`.

    One record alone says little about a trial: its first segments explore and its last ones know.
    """
    values: Record = {}
    for name in {name: None for record in records for name in record}:
        weights = [record.get("episodes", 0.0) if name in ("return", "success") else 1.0 for record in records]
        having = [(record[name], weight) for record, weight in zip(records, weights, strict=True) if name in record]
        total = sum(weight for _, weight in having)
        values[name] = sum(value * weight for value, weight in having) / total if total else having[-1][0]
    return values | {"env_steps": records[-1]["env_steps"]}
