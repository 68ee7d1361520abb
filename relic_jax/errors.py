"""Exceptions that relic-jax raises for its users to handle. The message of each is one line."""

from __future__ import annotations

from relic_jax.runtime.errors import ConfigError as ConfigError
from relic_jax.runtime.errors import one_line as one_line


class LockedError(ConfigError):
    """Another process, or another thread of this one, works on the run folder."""


class SharedError(ConfigError):
    """An error that all processes of a run raise and process 0 reports."""


class StorageError(OSError):
    """A file cannot be written: the disk is full or read-only, a quota is exceeded or permission is missing."""


class VerificationError(RuntimeError):
    """An export computes something else than its policy. It was not written."""
