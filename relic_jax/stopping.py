"""Stop a process on SIGINT (Ctrl-C) or SIGTERM. Exit codes are 130 and 143, as in shells."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE_SECONDS = 2.0
"""Seconds after a second signal until a process that is busy in compiled code ends without cleaning up."""


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


class Stop:
    """A request to stop, made by a signal or by the caller's event.

    Attributes:
        number: Number of the signal. None if there was none.
    """

    def __init__(self, event: threading.Event | None = None) -> None:
        self._event, self.number = event or threading.Event(), None

    number: int | None

    def is_set(self) -> bool:
        """Return whether the process should stop."""
        return self._event.is_set()

    def signalled(self, number: int) -> None:
        """Record a signal. The second one raises KeyboardInterrupt."""
        if self.number is not None:
            raise_interrupt(number)
        self.number = int(number)
        self._event.set()

    @property
    def exit_code(self) -> int:
        """The exit code of a process that a signal ended, 128 plus its number. 0 if there was none."""
        return 0 if self.number is None else 128 + self.number


def raise_interrupt(number: int, frame: FrameType | None = None) -> None:
    """Raise Terminated for SIGTERM, else KeyboardInterrupt. A signal handler."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stop_signals(event: threading.Event | None = None) -> Iterator[Stop]:
    """Record SIGINT and SIGTERM, which lets a loop end between its steps. A second signal raises.

    Only the main thread can install handlers. In another thread, such as one that a notebook starts, only the event
    stops the loop.

    Args:
        event: An event that the caller can also set. None: a new one.

    Yields:
        The `Stop` to check.
    """
    stop = Stop(event)
    with _handlers(lambda number, frame: stop.signalled(number)):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM into an exception, and end a process that a second signal cannot interrupt.

    Python handles signals only between its own instructions, so they wait while XLA compiles. Used for the lifetime of
    a command. Does nothing outside the main thread.
    """
    with _handlers(raise_interrupt), _watched():
        yield


@contextmanager
def _handlers(handle: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread can install handlers
        yield
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def _watched() -> Iterator[None]:
    """Start a thread that receives signals immediately and ends the process after the second one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    over = threading.Event()
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(previous)
        theirs.close()


def _watch(wakeup: socket.socket, over: threading.Event) -> None:
    signals = 0
    with wakeup, contextlib.suppress(OSError):
        while data := wakeup.recv(1):
            if data[0] in (signal.SIGINT, signal.SIGTERM):
                signals += 1
                if signals > 1 and not over.wait(PATIENCE_SECONDS):
                    os._exit(128 + data[0])
