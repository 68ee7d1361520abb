"""The live table of a sweep: one line per run on a terminal, one summary line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TextIO

from relic_jax.metrics import Record
from relic_jax.progress import duration, is_terminal

State = Literal["waiting", "compiling", "pretraining", "training", "evaluating", "finished", "failed"]
ACTIVE: tuple[State, ...] = ("compiling", "pretraining", "training", "evaluating")
LINES = 20
"""Maximum number of runs in the live table."""
INTERVAL = 10.0
"""Seconds between two summary lines."""


@dataclass
class Row:
    """What the table shows about a run.

    Attributes:
        name: Name of the run.
        total: Environment steps of the whole run.
        state: What happens to it.
        env_steps: Environment steps so far.
        result: Its newest return, as text.
        pretrained: Share of its pretraining that is done, 0 … 1.
    """

    name: str
    total: int
    state: State = "waiting"
    env_steps: int = 0
    result: str = ""
    pretrained: float = 0.0

    @property
    def share(self) -> float:
        """The share of the pretraining that is done while the run is pretrained, then that of the training."""
        return self.pretrained if self.state == "pretraining" else self.env_steps / self.total


class Board:
    """The state of all runs of a sweep, printed while they change.

    A context manager: exiting it leaves the last table on a terminal. If the stream fails, nothing more is printed.

    Args:
        rows: The runs.
        stream: Where to print. None: standard output.
        interval: Seconds between two summary lines. A table on a terminal is redrawn every half second.
    """

    def __init__(self, rows: Sequence[Row], stream: TextIO | None = None, interval: float = INTERVAL) -> None:
        self._rows, self._stream = {row.name: row for row in rows}, stream or sys.stdout
        self._live = is_terminal(self._stream)
        self._interval = 0.5 if self._live else interval
        self._lock, self._ended, self._drawn = threading.Lock(), threading.Event(), 0
        self._begun = time.monotonic()
        self._before = {row.name: row.env_steps for row in rows}
        self._thread = threading.Thread(target=self._run, name="relic-jax-sweep", daemon=True)

    def __enter__(self) -> Board:
        """Start the thread that prints."""
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread and print once more."""
        self._ended.set()
        self._thread.join()
        self._print()

    def set(
        self,
        name: str,
        state: State,
        env_steps: int | None = None,
        result: str | None = None,
        pretrained: float | None = None,
    ) -> None:
        """Change the row of a run. None leaves a field as it is."""
        row = self._rows[name]
        row.state = state
        row.env_steps = row.env_steps if env_steps is None else env_steps
        row.result = row.result if result is None else result
        row.pretrained = row.pretrained if pretrained is None else pretrained

    def already(self, name: str, state: State, env_steps: int, result: str = "") -> None:
        """Set what an earlier process did. It does not count for the speed."""
        self.set(name, state, env_steps, result)
        self._before[name] = env_steps

    def say(self, line: str) -> None:
        """Print a permanent line above the table."""
        with self._lock:
            self._write(self._erase() + line + "\n")
            self._drawn = 0

    def table(self) -> list[str]:
        """Return the lines of the live table: runs in progress and around them, then a summary."""
        rows = list(self._rows.values())
        active = [i for i, row in enumerate(rows) if row.state in ACTIVE]
        middle = active[0] if active else len(rows)
        start = max(0, min(middle - LINES // 2, len(rows) - LINES))
        width = max(len(row.name) for row in rows)
        lines = [f"  {_line(row, width)}" for row in rows[start : start + LINES]]
        return [*lines, self.summary()]

    def summary(self) -> str:
        """Return one line about all runs."""
        rows = list(self._rows.values())
        counts = {state: sum(row.state == state for row in rows) for state in ("finished", "failed")}
        parts = [f"{counts['finished']}/{len(rows)} runs finished"]
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        for state in ACTIVE:
            names = [row for row in rows if row.state == state]
            if names:
                share = sum(row.share * row.total for row in names) / sum(row.total for row in names)
                results = ", ".join(row.result for row in names if row.result)
                parts.append(f"{state} {', '.join(row.name for row in names)} {share:.0%}")
                parts += [f"return {results}"] if results else []
        elapsed = time.monotonic() - self._begun
        done = sum(row.env_steps - self._before[row.name] for row in rows)
        left = sum(row.total - row.env_steps for row in rows if row.state not in ("finished", "failed"))
        if done and left:
            parts.append(f"{done / elapsed:,.0f} steps/s · {duration(left * elapsed / done)} left")
        return " · ".join([*parts, duration(elapsed)])

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._print()

    def _print(self) -> None:
        with self._lock:
            lines = self.table() if self._live else [self.summary()]
            self._write(self._erase() + "\n".join(lines) + "\n")
            self._drawn = len(lines)

    def _erase(self) -> str:
        return f"\x1b[{self._drawn}A\x1b[J" if self._live and self._drawn else ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
            self._stream.write(text)
            self._stream.flush()


def _line(row: Row, width: int) -> str:
    share = f"{row.share:4.0%}" if row.state != "waiting" else "    "
    return f"{row.name:<{width}}  {row.state:<11}  {share}  {row.result}".rstrip()


class BoardTracker:
    """A tracker that shows one run on a board."""

    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name, self._return = board, name, ""

    def log(self, record: Record, clock: Record) -> None:
        """Show the environment steps and the return of a record."""
        if "return" in record:
            self._return = f"{record['return']:.1f}"
        self._board.set(self._name, "training", int(record["env_steps"]), self._return)

    def pretrained(self, record: Record, steps: int) -> None:
        """Show how far the pretraining of the run is."""
        done = record["optimizer_steps"] == steps
        self._board.set(
            self._name, "compiling" if done else "pretraining", 0, pretrained=record["optimizer_steps"] / steps
        )

    def close(self) -> None:
        """Do nothing. The board shows other runs too."""
