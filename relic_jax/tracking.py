"""The interface of trackers, and the console. Trackers receive plain numbers between jitted calls.

`relic_jax.metrics` writes `metrics.jsonl`. `relic_jax.dashboards` supports TensorBoard and W&B.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol, TextIO

from relic_jax.metrics import Record
from relic_jax.progress import Activity, duration, is_terminal


class Tracker(Protocol):
    """Receives one record per update. Records are deterministic. Numbers that depend on the clock are separate.

    The clock's numbers are `seconds` of training so far and, with the first update or trial of a process,
    `startup_seconds` (which includes compilation and pretraining), or `steps_per_second` and `seconds_left` with later
    ones. A tracker can also define `begin(what)`, which is called with a description before the first update, which
    compiles, `evaluated(evaluation)`, and `pretrained(record, steps)`, which is called with each record of the
    pretraining and its total number of optimizer steps.
    """

    def log(self, record: Record, clock: Record) -> None:
        """Log one record."""

    def close(self) -> None:
        """Close the tracker. It receives no more records."""


class Console:
    """A tracker that prints progress: a live line on a terminal, or a new line every few seconds elsewhere."""

    def __init__(self, total_steps: int, stream: TextIO | None = None, interval: float = 10.0) -> None:
        self._total, self._stream = total_steps, stream or sys.stdout
        self._live = is_terminal(self._stream)
        self._interval = 0.2 if self._live else interval
        self._printed = -math.inf
        self._since: list[Record] = []
        self._activity: Activity | None = None

    def begin(self, what: str) -> None:
        """Show an activity and its duration until the first record."""
        self._activity = Activity(what, self._stream, at_once=True)
        self._activity.__enter__()

    def _begun(self) -> None:
        if self._activity is not None:
            self._activity.__exit__(None, None, None)
            self._activity = None

    def log(self, record: Record, clock: Record) -> None:
        """Print a line that combines the records since the last one, unless that was printed recently."""
        self._begun()
        self._since.append(record)
        now = time.monotonic()
        if now - self._printed < self._interval and record["env_steps"] < self._total:
            return
        self._printed = now
        line = self.line(combined(self._since), clock)
        self._since = []
        self._write(f"\r\x1b[K{line}" if self._live else line + "\n")

    def evaluated(self, evaluation: dict[str, Any]) -> None:
        """Print the result of an evaluation during training."""
        steps, first, later = (evaluation[name] for name in ("env_steps", "first", "later"))
        text = f"{steps:>9,} steps · held-out tasks: first episode {first:.2f}"
        text += "" if later is None else f", later episodes {later:.2f}"
        self._write(f"\r\x1b[K{text}\n" if self._live else text + "\n")

    def pretrained(self, record: Record, steps: int) -> None:
        """Print a line about the pretraining, unless one was printed recently."""
        self._begun()
        done, now = int(record["optimizer_steps"]), time.monotonic()
        if now - self._printed < self._interval and done < steps:
            return
        self._printed = now
        text = f"pretraining {done:,}/{steps:,} optimizer steps ({done / steps:4.0%})"
        text += f" · cross-entropy {record['loss']:.3g}"
        text += f" · right {record['right']:.0%}" if "right" in record else ""
        text += f" · actions {record['action_right']:.0%}" if "action_right" in record else ""
        end = "\n" if done == steps or not self._live else ""
        self._write(("\r\x1b[K" if self._live else "") + text + end)

    def line(self, record: Record, clock: Record) -> str:
        """Format one line: progress, speed, time left, return, success, rung of the curriculum, losses."""
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
        if "curriculum/rung" in record:
            parts += [f"rung {record['curriculum/rung']:.3g}"]
        parts += [f"{name} {record[key]:.3g}" for name, key in _LOSSES if key in record]
        return " · ".join(parts)

    def close(self) -> None:
        """End the live line."""
        self._begun()
        if self._live:
            self._write("\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # the reader has closed the pipe: end the command
            raise
        except (OSError, ValueError, AttributeError):  # full disk, closed stream, or None: continue training
            pass


_LOSSES = (("policy", "policy_loss"), ("value", "value_loss"), ("entropy", "entropy"))


class Trackers:
    """A tracker that passes everything on to several trackers."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)

    def begin(self, what: str) -> None:
        """Call `begin` of the trackers that define it."""
        for tracker in self._trackers:
            begin = getattr(tracker, "begin", None)
            if begin is not None:
                begin(what)

    def evaluated(self, evaluation: dict[str, Any]) -> None:
        """Call `evaluated` of the trackers that define it."""
        for tracker in self._trackers:
            show = getattr(tracker, "evaluated", None)
            if show is not None:
                show(evaluation)

    def pretrained(self, record: Record, steps: int) -> None:
        """Call `pretrained` of the trackers that define it."""
        for tracker in self._trackers:
            show = getattr(tracker, "pretrained", None)
            if show is not None:
                show(record, steps)

    def log(self, record: Record, clock: Record) -> None:
        """Log one record to each tracker."""
        for tracker in self._trackers:
            tracker.log(record, clock)

    def close(self) -> None:
        """Close each tracker, even if another one fails."""
        with contextlib.ExitStack() as closing:
            for tracker in reversed(self._trackers):
                closing.callback(tracker.close)


def combined(records: list[Record]) -> Record:
    """Combine records into one with mean values and the newest `env_steps`.

    Values per episode are weighted by the number of episodes. A single record does not describe a trial well, because
    the policy explores in the first segments and exploits in the last ones.
    """
    values: Record = {}
    for name in {name: None for record in records for name in record}:
        of_episodes = name in ("return", "success") or name.startswith("episode/")
        weights = [record.get("episodes", 0.0) if of_episodes else 1.0 for record in records]
        having = [(record[name], weight) for record, weight in zip(records, weights, strict=True) if name in record]
        total = sum(weight for _, weight in having)
        values[name] = sum(value * weight for value, weight in having) / total if total else having[-1][0]
    return values | {"env_steps": records[-1]["env_steps"]}
