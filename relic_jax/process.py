"""Record whether this process runs the command line, which can then change its streams, hooks and search path.

In any other process, such as a notebook, a service or a test, they belong to the program that imported this library.
"""

from __future__ import annotations

import logging
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
