"""Whether this process is the command line's own, whose streams, hooks and search path are ours to set.

Elsewhere (a notebook, a service, a test) they belong to the program that imported this library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_OWN = ContextVar("own_process", default=False)


def is_own() -> bool:
    """Whether `own_process` is active."""
    return _OWN.get()


@contextmanager
def own_process() -> Iterator[None]:
    """Declares the process the command line's own, for a while."""
    token = _OWN.set(True)
    try:
        yield
    finally:
        _OWN.reset(token)
