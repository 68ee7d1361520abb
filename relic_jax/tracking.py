"""What training tells: the trackers' interface and the console. Fed with plain numbers between jitted calls.

`metrics.jsonl` is `relic_jax.metrics`, TensorBoard and W&B are `relic_jax.dashboards`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterable
from typing import Protocol, TextIO

from relic_jax.metrics import Record
from relic_jax.progress import Activity, duration, is_terminal


class Tracker(Protocol):
    """Receives one record per update. Records are deterministic; what depends on the clock comes separately.

    The clock's numbers: `seconds` of training so far; with the first update or trial of a session `startup_seconds`
    (compiling included), with all later ones `steps_per_second` and `seconds_left`. A tracker may also define
    `begin(what)`: called before the first update, which compiles, with what is being done.
    """

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
        self._activity: Activity | None = None

    def begin(self, what: str) -> None:
        """Says what is done until the first record comes, and for how long."""
        self._activity = Activity(what, self._stream, at_once=True)
        self._activity.__enter__()

    def _begun(self) -> None:
        if self._activity is not None:
            self._activity.__exit__(None, None, None)
            self._activity = None

    def log(self, record: Record, clock: Record) -> None:
        """Prints a line about what came since the last one, unless that is recent."""
        self._begun()
        self._since.append(record)
        now = time.monotonic()
        if now - self._printed < self._interval and record["env_steps"] < self._total:
            return
        self._printed = now
        line = self.line(combined(self._since), clock)
        self._since = []
        self._write(f"\r\x1b[K{line}" if self._live else line + "\n")

    def line(self, record: Record, clock: Record) -> str:
        """One line: progress, speed, time left, return, success, losses."""
        steps = int(record["env_steps"])
        parts = [
            f"{steps:>9,}/{self._total:,} steps ({min(steps / self._total, 1):4.0%})",
        ]
        if "steps_per_second" in clock:
            parts += [f"{clock['steps_per_second']:,.0f} steps/s", f"{duration(clock['seconds_left'])} left"]
        elif "startup_seconds" in clock:
            parts += [f"started in {duration(clock['startup_seconds'])}"]
        if "return" in record:
            parts += [f"return {record['return']:.2f}", f"success {record['success']:.0%}"]
        parts += [f"{name} {record[key]:.3g}" for name, key in _LOSSES if key in record]
        return " · ".join(parts)

    def close(self) -> None:
        """Ends the live line."""
        self._begun()
        if self._live:
            self._write("\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # nobody reads any more: the command ends
            raise
        except (OSError, ValueError, AttributeError):  # a log on a full disk, a closed stream, none: training goes on
            pass


_LOSSES = (("policy", "policy_loss"), ("value", "value_loss"), ("entropy", "entropy"))


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)

    def begin(self, what: str) -> None:
        """To those that have it."""
        for tracker in self._trackers:
            begin = getattr(tracker, "begin", None)
            if begin is not None:
                begin(what)

    def log(self, record: Record, clock: Record) -> None:
        """To each in turn."""
        for tracker in self._trackers:
            tracker.log(record, clock)

    def close(self) -> None:
        """Each in turn, also after one that fails."""
        with contextlib.ExitStack() as closing:
            for tracker in reversed(self._trackers):
                closing.callback(tracker.close)


def combined(records: list[Record]) -> Record:
    """Several records as one: means, of what is measured per episode over the episodes; the newest `env_steps`.

    One record alone says little about a trial: its first segments explore and its last ones know.
    """
    values: Record = {}
    for name in {name: None for record in records for name in record}:
        of_episodes = name in ("return", "success") or name.startswith("episode/")
        weights = [record.get("episodes", 0.0) if of_episodes else 1.0 for record in records]
        having = [(record[name], weight) for record, weight in zip(records, weights, strict=True) if name in record]
        total = sum(weight for _, weight in having)
        values[name] = sum(value * weight for value, weight in having) / total if total else having[-1][0]
    return values | {"env_steps": records[-1]["env_steps"]}
