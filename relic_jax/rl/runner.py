"""Runners, which advance training by one chunk. There is one for environments inside jit and one for worker processes.

`make_runner` is the only place in training that distinguishes the two.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from relic_jax.rl.host import HostRunner
from relic_jax.rl.parallel import parallel
from relic_jax.rl.segment import segment_step, trial_step
from relic_jax.rl.state import Setup, TrainState


class Runner(Protocol):
    """Advances a TrainState by one chunk: a segment or a whole trial of acting and updates.

    A runner is a context manager. Exiting it ends everything that it started, such as worker processes.
    """

    def __enter__(self) -> Self:
        """Return the runner."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that the runner started."""
        ...

    def __call__(self, state: TrainState) -> tuple[TrainState, Any]:
        """Advance by one chunk.

        Args:
            state: the current state, which is donated.

        Returns:
            The next state, and metrics. The metrics of a whole trial have a leading axis [U] over updates.
        """
        ...


class JittedRunner:
    """Runs chunks of training in an environment inside jit. The chunk is compiled once for the whole run."""

    def __init__(self, setup: Setup) -> None:
        self._chunk = compile_chunk(setup)

    def __enter__(self) -> JittedRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, state: TrainState) -> tuple[TrainState, Any]:
        """Train for one chunk."""
        return self._chunk(state)


def make_runner(setup: Setup) -> Runner:
    """Return the runner for the environment of a setup.

    Raises:
        ConfigError: if worker processes cannot start.
    """
    return HostRunner(setup) if setup.trials.env.on_host else JittedRunner(setup)


def compile_chunk(setup: Setup) -> Callable[[TrainState], tuple[TrainState, Any]]:
    """Return the jitted chunk of training, which donates its state: a segment or a trial, as `config.chunk` says."""
    return parallel(setup, trial_step if setup.config.chunk == "trial" else segment_step)
