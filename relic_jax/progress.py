"""Show what the program is doing and for how long while it prints nothing else."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import TextIO


class Activity:
    """Progress of a long operation: a live line on a terminal, or a new line every `interval` seconds elsewhere.

    A thread prints, so progress is visible during a single long call. An operation that ends within `interval` seconds
    (one second on a terminal) prints nothing. The live line is erased at the end. `show` changes the text. If the
    stream is closed or fails, nothing more is printed.

    Args:
        text: Description of the operation.
        stream: Where to print. None: standard output.
        interval: Seconds between two lines.
        at_once: Whether to print the text immediately.
    """

    def __init__(self, text: str, stream: TextIO | None = None, interval: float = 10.0, at_once: bool = False) -> None:
        self._text, self._stream = text, stream or sys.stdout
        self._live = is_terminal(self._stream)
        self._interval = min(interval, 1.0) if self._live else interval
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="relic-jax-progress", daemon=True)
        self._start, self._shown, self._at_once = time.monotonic(), False, at_once

    def __enter__(self) -> Activity:
        """Start the thread."""
        self._start = time.monotonic()
        if self._at_once:
            self._print()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread and erase the live line."""
        self._ended.set()
        self._thread.join()
        if self._live and self._shown:
            self._write("\r\x1b[K")

    def show(self, text: str) -> None:
        """Set the text. A live line that is already visible changes immediately."""
        self._text = text
        if self._live and self._shown:
            self._print()

    def say(self, line: str) -> None:
        """Print a permanent line in place of the live one."""
        self._write(("\r\x1b[K" if self._live and self._shown else "") + line + "\n")
        self._shown = False

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._print()

    def _print(self) -> None:
        seconds = time.monotonic() - self._start
        line = f"{self._text} · {duration(seconds)}" if self._shown or not self._at_once else f"{self._text} …"
        self._shown = True
        self._write(f"\r\x1b[K{line}" if self._live else line + "\n")

    def _write(self, text: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
            self._stream.write(text)
            self._stream.flush()


class Clock:
    """Elapsed time, speed and remaining time of a run. The speed is recent and excludes compilation in the first chunk.

    Args:
        seconds: Duration of the run before it was resumed.
        total: Environment steps of the run.
        window: Minimum number of environment steps that the speed is averaged over, in addition to a minimum of one
            minute.
    """

    def __init__(self, seconds: float, total: int, window: int = 0) -> None:
        self._before, self._total, self._window = seconds, total, window
        self._start = time.monotonic()
        self._ends: deque[tuple[float, int]] = deque()

    def read(self, env_steps: int) -> dict[str, float]:
        """Read the clock at the end of a chunk.

        Args:
            env_steps: Environment steps of the run so far.

        Returns:
            `seconds` of the run so far, and `startup_seconds` after the first chunk, or `steps_per_second` and
            `seconds_left` after a later one.
        """
        now = time.monotonic()
        self._ends.append((now, env_steps))
        while len(self._ends) > 2 and now - self._ends[1][0] >= 60 and env_steps - self._ends[1][1] >= self._window:
            self._ends.popleft()
        seconds = self._before + now - self._start
        since, counted = self._ends[0]
        if env_steps == counted:
            return {"seconds": seconds, "startup_seconds": now - self._start}
        speed = (env_steps - counted) / max(now - since, 1e-9)
        left = (self._total - env_steps) / max(speed, 1e-9)
        return {"seconds": seconds, "steps_per_second": speed, "seconds_left": left}


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal. False if a notebook's or a test runner's replacement cannot tell."""
    try:
        return bool(stream is not None and stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def duration(seconds: float) -> str:
    """Format a duration, such as 75 as '1:15'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
