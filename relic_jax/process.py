"""Record whether this process runs the command line, which can then change its streams, hooks and search path.

In any other process, such as a notebook, a service or a test, they belong to the program that imported this library.
"""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_OWN = ContextVar("own_process", default=False)


def is_own() -> bool:
    """Return whether `own_process` is active."""
    return _OWN.get()


@contextmanager
def own_process() -> Iterator[None]:
    """Mark the process as that of the command line within the context."""
    token = _OWN.set(True)
    try:
        yield
    finally:
        _OWN.reset(token)


@contextmanager
def unconfigured_root_logger() -> Iterator[None]:
    """Keep absl, with which orbax logs, from configuring a root logger that has no handler.

    Within the context, warnings go to standard error, as for any root logger without handlers.
    """
    handler = None if logging.root.handlers else logging.lastResort
    if handler is not None:
        logging.root.addHandler(handler)
    try:
        yield
    finally:
        if handler is not None:
            logging.root.removeHandler(handler)


@contextmanager
def without_orbax_messages() -> Iterator[None]:
    """Suppress orbax's log records, and its reports of coroutines that did not finish because of an error.

    Has an effect only in a process of the command line. The loggers and hooks of other programs stay unchanged.
    """
    if not is_own():
        yield
        return

    def drop(_: logging.LogRecord) -> bool:
        return False

    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    for logger in loggers:
        logger.addFilter(drop)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that were never awaited
            yield
            gc.collect()  # while the filters are active
    finally:
        for logger in loggers:
            logger.removeFilter(drop)
        sys.unraisablehook = hook
