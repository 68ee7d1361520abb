"""How a process is asked to stop: SIGINT (Ctrl-C) and SIGTERM. Exit codes are 130 and 143, as in shells."""

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
"""After a second signal, until a process that is busy in compiled code ends without cleaning up."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


class Stop:
    """Whether the process should stop: a signal came, or the caller's event is set. number: of the signal, or None."""

    def __init__(self, event: threading.Event | None = None) -> None:
        self._event, self.number = event or threading.Event(), None

    number: int | None

    def is_set(self) -> bool:
        """Whether it should stop."""
        return self._event.is_set()

    def signalled(self, number: int) -> None:
        """A signal came; the second one raises KeyboardInterrupt."""
        if self.number is not None:
            raise_interrupt(number)
        self.number = int(number)
        self._event.set()

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that a signal ended: 128 and its number; 0 where none came."""
        return 0 if self.number is None else 128 + self.number


def raise_interrupt(number: int, frame: FrameType | None = None) -> None:
    """A signal handler: raises KeyboardInterrupt, or Terminated."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stop_signals(event: threading.Event | None = None) -> Iterator[Stop]:
    """Notes SIGINT and SIGTERM, so that a loop can end between its steps. A second signal is final.

    event: one of the caller's, which may be set by other means too; None: a new one. Signals reach the main thread
    only: elsewhere, as in a thread that a notebook starts, no handler is installed.
    """
    stop = Stop(event)
    with _handlers(lambda number, frame: stop.signalled(number)):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM into an exception as Python does SIGINT, and ends a process that a second signal cannot interrupt.

    Python handles signals between its own instructions only: while XLA compiles, a signal waits. For the whole run of
    a command line; does nothing outside the main thread.
    """
    with _handlers(raise_interrupt), _watched():
        yield


@contextmanager
def _handlers(handle: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may install handlers
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
    """A thread hears of signals at once and ends the process after the second, if it has not ended by itself."""
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
    seen = 0
    with wakeup, contextlib.suppress(OSError):
        while data := wakeup.recv(1):
            if data[0] in (signal.SIGINT, signal.SIGTERM):
                seen += 1
                if seen > 1 and not over.wait(PATIENCE_SECONDS):
                    os._exit(128 + data[0])
