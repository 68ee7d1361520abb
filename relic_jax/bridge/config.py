"""What a pool of workers runs, and the errors and faults that it reports."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple


class PoolError(RuntimeError):
    """The pool cannot start or cannot continue. The message is a single line."""


class PoolStoppedError(PoolError):
    """Too many workers failed, or one failed in a way that a restart cannot fix."""


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """The program, number and limits of the workers."""

    entry: str
    """`module:function` that makes one environment, see `worker`."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of `entry`, JSON values."""
    workers: int = 2
    """N, number of processes."""
    environments: int = 1
    """M, environments in each process."""
    groups: int = 2
    """Groups of environments that step in turn. Must divide M or N."""
    python: str = sys.executable
    """The workers' interpreter."""
    paths: tuple[str, ...] = ()
    """Folders that the workers search for modules, besides the current one."""
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables to set in the workers."""
    start_timeout: float = 120.0
    """Seconds for a process to start, and for a reset (simulators load scenes)."""
    step_timeout: float = 60.0
    """Seconds without an answer after which a stepping worker counts as hanging."""
    max_restarts: int = 100
    """Restarts of all workers together, after which the pool stops."""
    backoff: float = 0.1
    """Seconds before the first restart of a worker. They double with each consecutive failure."""
    max_backoff: float = 30.0
    """Upper limit of the seconds before a restart."""
    ray: str | None = None
    """Address of the Ray cluster that runs the workers (see `cluster`); "local": a cluster of this machine."""

    @property
    def total(self) -> int:
        """N·M, the environments of the pool."""
        return self.workers * self.environments

    def validate(self) -> None:
        """Raise PoolError if a count is not positive or `groups` divides neither environments nor workers."""
        for field in ("workers", "environments", "groups"):
            if getattr(self, field) < 1:
                raise PoolError(f"{field} is {getattr(self, field)}; allowed: 1 or more")
        if self.environments % self.groups and self.workers % self.groups:
            allowed = f"a divisor of environments ({self.environments}) or of workers ({self.workers})"
            raise PoolError(f"groups is {self.groups}; allowed: {allowed}")


class Fault(NamedTuple):
    """A failure of a worker."""

    worker: int
    """Index of the worker."""
    kind: str
    """crash, hang, value (a non-finite number or a wrong shape), exception, or setup."""
    message: str
    """Description in a single line."""
