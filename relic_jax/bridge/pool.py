"""A pool of workers: batched resets and steps, several groups in flight, and recovery from failures.

The N·M environments have indices 0 … N·M−1 and are split into `groups` of equal size, each a range of indices. While
the policy acts on one group, the workers simulate the others: `send(actions, g)` returns at once, `receive(g)` waits,
and `ready(groups)` waits for any of several groups.

A worker that dies, hangs, or violates its spec is restarted after a pause that doubles each time. Each of its
environments then answers the step in flight (or the next one) with the end of the episode: reward 0, truncated, not
`valid` (the outcome of the action is unknown), and the first observation of the next episode of the SAME task and
trial. If the simulator cannot be put back into the task, the environment is `dropped`: until the next `reset`, its
steps are not valid and its observation does not change.
"""

from __future__ import annotations

import contextlib
import selectors
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.batch import Batch, collect
from relic_jax.bridge.cluster import RemoteProcess
from relic_jax.bridge.config import Fault, PoolConfig, PoolError, PoolStoppedError
from relic_jax.bridge.member import Lane, Member, Shared
from relic_jax.bridge.process import UNSUPPORTED, Process, supported
from relic_jax.bridge.protocol import Spec

__all__ = ["Batch", "Fault", "Pool", "PoolConfig", "PoolError", "PoolStoppedError"]


class Pool:
    """A pool of workers, see the module. It is a context manager; `close` leaves no process and no memory behind.

    A pool must be used from a single thread.
    """

    def __init__(self, config: PoolConfig, expected: Spec | None = None) -> None:
        """Start the workers and wait for all of them.

        Args:
            config: The program, number and limits of the workers.
            expected: The spec that the workers must announce; None accepts any.

        Raises:
            PoolError: A value of `config` is not allowed, or a worker cannot start.
        """
        config.validate()
        if not supported():
            raise PoolError(UNSUPPORTED)
        self.config = config
        self._shared = Shared(config, expected)
        self._members = [Member(process, self._shared) for process in _processes(config)]
        self._groups = _split(config, self._members)
        self._lanes = [lane for group in self._groups for lane in group]
        processes = [member.process for member in self._members]
        self._finalizer = weakref.finalize(self, _close, processes, self._shared.selector)
        try:
            for member in self._members:
                member.start()
            self._wait(lambda: all(member.phase == "up" for member in self._members))
        except BaseException:
            self.close()
            raise
        self._shared.running = True

    @property
    def spec(self) -> Spec:
        """The spec of the environments."""
        if self._shared.spec is None:
            raise PoolError("the workers have not announced their spec yet")
        return self._shared.spec

    @property
    def faults(self) -> list[Fault]:
        """The faults so far."""
        return self._shared.faults

    @property
    def restarts(self) -> int:
        """Number of restarted workers so far."""
        return self._shared.restarts

    @property
    def dropped(self) -> int:
        """Number of environments so far that could not be put back into their task."""
        return self._shared.dropped

    @property
    def versions(self) -> list[dict[str, str]]:
        """Versions that each worker runs: python, numpy, and those that its environment adds."""
        return [member.versions for member in self._members]

    @property
    def pids(self) -> list[int | None]:
        """Process ids; None for a worker that is down."""
        return [member.process.pid for member in self._members]

    def group(self, index: int) -> np.ndarray:
        """Return the indices of the environments in a group, int32, ascending."""
        return np.concatenate([lane.numbers for lane in self._groups[index]])

    def reset(
        self,
        tasks: Sequence[Any],
        seeds: Sequence[int],
        episodes: Sequence[int] | None = None,
        replay: Sequence[Sequence[Any]] | None = None,
    ) -> Batch:
        """Start a trial in every environment and wait for all of them. Pending steps are discarded.

        To continue the trials of another pool, pass `episodes` and `replay`.

        Args:
            tasks: One JSON value per environment.
            seeds: One non-negative integer per environment.
            episodes: Number of episodes of the trial that have ended, per environment.
            replay: Actions of the current episode so far, per environment.

        Raises:
            PoolError: The number of tasks or seeds does not match, or the pool cannot continue.
        """
        if not len(tasks) == len(seeds) == self.config.total:
            raise PoolError(f"{len(tasks)} tasks and {len(seeds)} seeds for {self.config.total} environments")
        with self._closed_when_stopped():
            self._wait(lambda: not any(lane.state == "busy" or lane.resetting for lane in self._lanes))
            for lane in self._lanes:
                lane.begin_trial(
                    tasks=[tasks[n] for n in lane.numbers],
                    seeds=[int(seeds[n]) for n in lane.numbers],
                    episodes=[episodes[n] if episodes is not None else 0 for n in lane.numbers],
                    replay=[list(replay[n]) if replay is not None else [] for n in lane.numbers],
                )
            for member in self._members:
                member.process.trim_log()
                member.recover()
            return self._collect(self._lanes)

    def send(self, actions: np.ndarray, group: int | None = None) -> None:
        """Start a step of a group; None: of all groups.

        Args:
            actions: [b, …], in the order of the group's environments. `protocol.EXPERT` asks the scripted expert to
                act.
            group: Index of the group.

        Raises:
            PoolError: The actions have another shape, there is no expert, a step is pending, or the pool cannot
                continue.
        """
        lanes = self._selected(group)
        actions = np.asarray(actions, np.dtype(self.spec.action.dtype))
        expected = (sum(len(lane.numbers) for lane in lanes), *self.spec.action.shape)
        if actions.shape != expected:
            raise PoolError(f"actions have shape {list(actions.shape)}; allowed: {list(expected)}")
        if not self.spec.expert and self.spec.asks_expert(actions).any():
            raise PoolError(
                f"an action is {protocol.EXPERT}, the expert's; allowed: 0 or more, {self.spec.name} has none"
            )
        start = 0
        with self._closed_when_stopped():
            for lane in lanes:
                stop = start + len(lane.numbers)
                lane.step(actions[start:stop])
                start = stop

    def receive(self, group: int | None = None) -> Batch:
        """Wait for the step that `send` started, of a group or (None) of all groups.

        Raises:
            PoolError: No step is pending, or the pool cannot continue.
        """
        lanes = self._selected(group)
        if any(lane.state == "idle" for lane in lanes):
            raise PoolError("receive without send")
        with self._closed_when_stopped():
            return self._collect(lanes)

    def ready(self, groups: Sequence[int]) -> int:
        """Wait until one of several groups can be received, and return its index.

        Args:
            groups: Indices of groups with a pending step. If several groups are ready, the first of them is returned.

        Raises:
            PoolError: There is no group, a group has no pending step, or the pool cannot continue.
        """
        if not groups or any(lane.state == "idle" for group in groups for lane in self._groups[group]):
            raise PoolError("ready without send")

        def is_ready(group: int) -> bool:
            return all(lane.state == "ready" for lane in self._groups[group])

        with self._closed_when_stopped():
            self._wait(lambda: any(map(is_ready, groups)))
        return next(filter(is_ready, groups))

    def close(self) -> None:
        """End all workers. Further calls do nothing."""
        for member in self._members:
            if member.phase == "up":
                member.process.request_close()
        self._finalizer()
        for member in self._members:
            member.phase = "down"

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _selected(self, group: int | None) -> list[Lane]:
        return self._lanes if group is None else self._groups[group]

    @contextlib.contextmanager
    def _closed_when_stopped(self) -> Iterator[None]:
        try:
            yield
        except PoolStoppedError:
            self.close()
            raise

    def _wait(self, done: Callable[[], bool]) -> None:
        """Handle messages and timeouts of the workers until `done`. No other method waits."""
        while not done():
            now = time.monotonic()
            for member in self._members:
                if member.deadline <= now:
                    member.overdue()
            if done():
                return
            due = [member.deadline for member in self._members if member.phase == "down" or member.waiting]
            timeout = max(min(due, default=now + 1.0) - time.monotonic(), 0.0)
            for key, _ in self._shared.selector.select(timeout):
                key.data.read()

    def _collect(self, lanes: list[Lane]) -> Batch:
        """Wait until lanes are ready, copy their results, and make them idle."""
        self._wait(lambda: all(lane.state == "ready" for lane in lanes))
        batch = collect(self.spec, lanes)
        for lane in lanes:
            lane.state = "idle"
            lane.worker.recover()
        return batch


def _processes(config: PoolConfig) -> list[Process] | list[RemoteProcess]:
    """Return the workers, not started yet. Raises PoolError if Ray is requested and missing."""
    if config.ray is None:
        return [Process(index) for index in range(config.workers)]
    try:
        return [RemoteProcess(index, config.ray) for index in range(config.workers)]
    except ImportError as error:
        allowed = f"None without the package ray ({error}); pip install 'relic-jax[ray]'"
        raise PoolError(f"ray is {config.ray!r}; allowed: {allowed}") from None


def _split(config: PoolConfig, members: list[Member]) -> list[list[Lane]]:
    """Return the lanes of each group, and add them to the members. Environments are numbered group by group.

    If the environments of a worker can be split, each worker has a lane in every group, so that no worker idles while
    another group steps. Otherwise each group has its own workers.
    """
    groups: list[list[Lane]] = [[] for _ in range(config.groups)]
    inside = config.environments % config.groups == 0
    size, number = config.environments // (config.groups if inside else 1), 0
    per_group = config.workers // config.groups
    for index, group in enumerate(groups):
        for member in members if inside else members[index * per_group : (index + 1) * per_group]:
            rows = slice(index * size, (index + 1) * size) if inside else slice(0, size)
            lane = Lane(member, len(member.lanes), rows, np.arange(number, number + size, dtype=np.int32))
            number += size
            member.lanes.append(lane)
            group.append(lane)
    return groups


def _close(processes: Sequence[Process | RemoteProcess], selector: selectors.BaseSelector) -> None:
    """End the processes. Those that were asked to close have two seconds in all before they are killed."""
    deadline = time.monotonic() + 2.0
    for process in processes:
        process.close(grace=max(deadline - time.monotonic(), 0.01) if process.close_requested else 0.0)
    selector.close()
