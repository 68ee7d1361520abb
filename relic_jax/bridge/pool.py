"""A pool of workers: batched resets and steps, two half-batches in flight, and workers that may fail.

The N·M environments have numbers 0 … N·M−1 and are split into `groups` of equal size, each a range of numbers. While
the policy looks at one group the workers simulate the other: `send(actions, g)` returns at once, `receive(g)` waits.
In the asynchronous mode, `receive_first(k)` takes whatever is ready first.

A worker that dies, hangs, or returns what its spec does not allow is started again after a pause that doubles. Each of
its environments then answers the step in flight (or the next one) with the end of the episode: reward 0, truncated, not
`valid` (the action's outcome was never seen), and the first observation of the next episode of the SAME task and trial.
Where the simulator cannot be put back into the task, the environment is `dropped`: until the next `reset` its steps
are not valid and its observation stands still.
"""

from __future__ import annotations

import dataclasses
import logging
import selectors
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.cluster import RemoteProcess
from relic_jax.bridge.process import UNSUPPORTED, Process, supported
from relic_jax.bridge.protocol import ProtocolError, Spec
from relic_jax.horizon import tell_of_cut

log = logging.getLogger("relic_jax.bridge")
GIVE_UP = 3  # failures in a row after which an environment cannot be put back into its task


class PoolError(RuntimeError):
    """The pool cannot start, or cannot go on. One line."""


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """What the workers run and how many there are.

    entry: `module:function` that makes one environment (see `worker`). config: its keyword arguments, JSON.
    python: the workers' interpreter. paths: folders with modules of the user's own. environ: variables to set.
    """

    entry: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    workers: int = 2
    """N, processes."""
    environments: int = 1
    """M, environments in each of them."""
    groups: int = 2
    """Parts of the batch that are in flight by turns; must divide M, or N."""
    python: str = sys.executable
    paths: tuple[str, ...] = ()
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start_timeout: float = 120.0
    """Seconds for the process to start, and for a reset (simulators load scenes)."""
    step_timeout: float = 60.0
    """Seconds without an answer after which a stepping worker counts as hanging."""
    max_restarts: int = 100
    """Restarts, of all workers together, after which the pool gives up."""
    backoff: float = 0.1
    """Seconds before the first restart of a worker; they double with every failure in a row."""
    max_backoff: float = 30.0
    """At most that many seconds."""
    ray: str | None = None
    """Address of the Ray cluster whose machines run the workers (`cluster`); "local": one of this machine alone."""

    @property
    def total(self) -> int:
        """N·M, environments of the pool."""
        return self.workers * self.environments


class Batch(NamedTuple):
    """What b environments answered. Fresh arrays of the caller's own, leading axis b.

    environments: int32, their numbers. observation: {name: array}, what the policy sees next.
    reward: float32. terminated, truncated: bool, at most one; then the next episode has begun. acted: the action taken.
    metrics: float32 [b, len(spec.metrics)], of this step. valid: bool; False: the outcome is unknown, see the module.
    final: {name: array}, the last observation where the episode ended, `observation` elsewhere; None: none ended.
    legal: bool [b, spec.mask_size], which actions can be taken next; None: the environments do not say so.
    """

    environments: np.ndarray
    observation: dict[str, np.ndarray]
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    acted: np.ndarray
    metrics: np.ndarray
    valid: np.ndarray
    final: dict[str, np.ndarray] | None
    legal: np.ndarray | None = None


class Fault(NamedTuple):
    """worker: its number. kind: crash, hang, value (NaN, shape), exception, or setup. message: one line."""

    worker: int
    kind: str
    message: str


class Outcome(NamedTuple):
    """What a ready lane has. kind: step and reset, as asked for; lost, dropped: the module says what that means.
    before: the buffer with what the policy acted on. truncated: a lost or dropped lane's episode ends with this.
    """

    kind: Literal["step", "reset", "lost", "dropped"]
    before: int
    truncated: bool = False


class Lane:
    """A part of one worker's environments that is stepped together, and what the learner knows about it.

    state: idle, busy (the caller waits for what it `awaits`), ready (`outcome` can be taken). buffer: which of the
    worker's buffers holds the newest good result. lost: what the worker was doing is gone, only a reset helps;
    `resetting`: it was sent; `recovered`: its result is in the other buffer. replay: actions that a reset repeats.
    """

    def __init__(self, worker: Member, index: int, rows: slice, numbers: np.ndarray) -> None:
        self.worker, self.index, self.rows, self.numbers = worker, index, rows, numbers
        self.state: Literal["idle", "busy", "ready"] = "idle"
        self.awaits: Literal["step", "reset"] = "step"
        self.tasks: list[Any] = []
        self.seeds: list[int] = []
        self.episodes = [0] * len(numbers)
        self.replay: list[list[Any]] = [[] for _ in numbers]
        self.buffer = 0
        self.outcome = Outcome("reset", 0)
        self.lost = self.resetting = self.recovered = False
        self.dropped = self.untold = False

    @property
    def needs_reset(self) -> bool:
        """Only a reset helps. One that is ready waits: its other buffer may hold an episode's last observation."""
        return self.lost and not (self.dropped or self.recovered or self.state == "ready")


class Member:
    """A worker in the pool. phase: down (until `deadline`), hello, map (answers to these are awaited), up."""

    def __init__(self, process: Process | RemoteProcess) -> None:
        self.process = process
        self.lanes: list[Lane] = []
        self.phase: Literal["down", "hello", "map", "up"] = "down"
        self.deadline = 0.0
        self.failures = 0
        self.versions: dict[str, str] = {}

    @property
    def waiting(self) -> bool:
        """An answer is due."""
        return self.phase in ("hello", "map") or any(
            lane.resetting or (lane.state == "busy" and not lane.lost) for lane in self.lanes
        )


class Pool:
    """See the module. A context manager; `close` leaves no process and no memory. Not for several threads.

    spec: what the environments are. faults: what went wrong so far. restarts, dropped: how often (workers started
    again; environments that could not be put back into their task).
    """

    def __init__(self, config: PoolConfig, expected: Spec | None = None) -> None:
        """Starts the workers and waits for all. expected: what the environments must be. Raises PoolError."""
        _check(config)
        if not supported():
            raise PoolError(UNSUPPORTED)
        self.config = config
        self._expected = expected
        self.faults: list[Fault] = []
        self.restarts = self.dropped = 0
        self._running = False
        self._order: list[Lane] = []  # ready lanes, first come first
        self._selector = selectors.DefaultSelector()
        self._members = [Member(process) for process in _processes(config)]
        self._groups = _split(config, self._members)
        self._lane_of = {int(number): lane for group in self._groups for lane in group for number in lane.numbers}
        self._finalizer = weakref.finalize(self, _close, [m.process for m in self._members], self._selector)
        try:
            for member in self._members:
                self._start(member)
            self._pump(lambda: all(member.phase == "up" for member in self._members))
        except BaseException:
            self.close()
            raise
        self._running = True

    @property
    def spec(self) -> Spec:
        """What the environments are."""
        if self._expected is None:
            raise PoolError("the workers have not said yet what their environments are")
        return self._expected

    @property
    def versions(self) -> list[dict[str, str]]:
        """What each worker runs on: python, numpy, and what its environment adds."""
        return [member.versions for member in self._members]

    @property
    def pids(self) -> list[int | None]:
        """Process ids, None where a worker is down at the moment."""
        return [member.process.pid for member in self._members]

    def group(self, index: int) -> np.ndarray:
        """Numbers of the environments in a group: int32, ascending."""
        return np.concatenate([lane.numbers for lane in self._groups[index]])

    def reset(
        self,
        tasks: Sequence[Any],
        seeds: Sequence[int],
        episodes: Sequence[int] | None = None,
        replay: Sequence[Sequence[Any]] | None = None,
    ) -> Batch:
        """Starts a trial in every environment and waits. tasks: JSON values, seeds: 0 or more, one per environment.

        To go on with trials that another pool began: episodes, how many have ended before; replay, the actions that
        were taken in the running one. Steps that are still in flight are waited for and forgotten.
        """
        if not len(tasks) == len(seeds) == self.config.total:
            raise PoolError(f"{len(tasks)} tasks and {len(seeds)} seeds for {self.config.total} environments")
        lanes = [lane for group in self._groups for lane in group]
        self._pump(lambda: not any(lane.state == "busy" or lane.resetting for lane in lanes))
        self._order.clear()
        for lane in lanes:
            lane.tasks = [tasks[n] for n in lane.numbers]
            lane.seeds = [int(seeds[n]) for n in lane.numbers]
            lane.episodes = [episodes[n] if episodes is not None else 0 for n in lane.numbers]
            lane.replay = [list(replay[n]) if replay is not None else [] for n in lane.numbers]
            lane.state, lane.awaits = "busy", "reset"
            lane.lost, lane.resetting, lane.recovered = True, False, False
            lane.dropped = lane.untold = False
        for member in self._members:
            member.process.trim_log()
            if member.phase == "up":
                self._recover(member)
        self._pump(lambda: all(lane.state == "ready" for lane in lanes))
        return self._take(lanes)

    def send(self, actions: np.ndarray, group: int | None = None, *, environments: np.ndarray | None = None) -> None:
        """Starts a step of a group (None: of all), or of `environments` (whole lanes, as `receive_first` gave them).

        actions: [b, ...] in the order of the group's or these numbers; `protocol.EXPERT`: the expert acts.
        """
        lanes = self._chosen(group) if environments is None else self._lanes(environments)
        actions = np.asarray(actions, np.dtype(self.spec.action.dtype))
        expected = (sum(len(lane.numbers) for lane in lanes), *self.spec.action.shape)
        if actions.shape != expected:
            raise PoolError(f"actions have shape {list(actions.shape)}; allowed: {list(expected)}")
        if not self.spec.expert and self.spec.asks_expert(actions).any():
            raise PoolError(
                f"an action is {protocol.EXPERT}, the expert's; allowed: 0 or more, {self.spec.name} has none"
            )
        start = 0
        for lane in lanes:
            stop = start + len(lane.numbers)
            self._step(lane, actions[start:stop])
            start = stop

    def receive(self, group: int | None = None) -> Batch:
        """Waits for what `send` to that group (None: to all) started."""
        lanes = self._chosen(group)
        for lane in lanes:
            if lane.state == "idle":
                raise PoolError("receive without send")
        self._pump(lambda: all(lane.state == "ready" for lane in lanes))
        return self._take(lanes)

    def receive_first(self, count: int) -> Batch:
        """Waits until `count` environments have answered and takes those that did first (whole lanes)."""
        in_flight = sum(len(lane.numbers) for lane in self._lane_of_all() if lane.state != "idle")
        if not 0 < count <= in_flight:
            raise PoolError(f"count is {count}; allowed: 1 … {in_flight}, the environments that were sent actions")
        self._pump(lambda: sum(len(lane.numbers) for lane in self._order) >= count)
        taken: list[Lane] = []
        while sum(len(lane.numbers) for lane in taken) < count:
            taken.append(self._order[len(taken)])
        return self._take(taken)

    def close(self) -> None:
        """Ends all workers. Idempotent."""
        for member in self._members:
            if member.phase == "up":
                member.process.ask_to_close()
        self._finalizer()
        for member in self._members:
            member.phase = "down"

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # What follows keeps the state machine. One rule: `_pump` is the only place that waits.

    def _lane_of_all(self) -> Iterable[Lane]:
        return (lane for group in self._groups for lane in group)

    def _chosen(self, group: int | None) -> list[Lane]:
        return list(self._lane_of_all()) if group is None else self._groups[group]

    def _lanes(self, environments: np.ndarray) -> list[Lane]:
        lanes = list(dict.fromkeys(self._lane_of[int(number)] for number in environments))
        if not np.array_equal(np.concatenate([lane.numbers for lane in lanes]), environments):
            raise PoolError("environments are not whole lanes in their order")
        return lanes

    def _step(self, lane: Lane, actions: np.ndarray) -> None:
        if lane.state != "idle":
            raise PoolError("send twice without receive")
        lane.state, lane.awaits = "busy", "step"
        buffers, target = lane.worker.process.buffers, 1 - lane.buffer
        buffers[lane.buffer]["acted"][lane.rows] = actions  # what is reported should the worker fail
        if not (lane.lost or lane.dropped):
            buffers[target]["action"][lane.rows] = actions
            self._tell(lane.worker, {"op": "step", "lane": lane.index, "buffer": target})
        self._settle(lane)

    def _settle(self, lane: Lane) -> None:
        """A lost or dropped lane that waits for nothing any more is ready."""
        if lane.state != "busy":
            return
        if lane.dropped:
            self._make_ready(lane, Outcome("dropped", lane.buffer, lane.untold and lane.awaits == "step"))
            lane.untold = False
        elif lane.recovered:
            outcome = Outcome("reset" if lane.awaits == "reset" else "lost", lane.buffer, lane.awaits == "step")
            lane.buffer, lane.lost, lane.recovered = 1 - lane.buffer, False, False
            self._make_ready(lane, outcome)

    def _make_ready(self, lane: Lane, outcome: Outcome) -> None:
        lane.state, lane.outcome = "ready", outcome
        self._order.append(lane)

    def _tell(self, member: Member, message: dict[str, Any]) -> None:
        """Sends a message and sets the time by which an answer is due."""
        try:
            self._due(member)
            member.process.channel.send(message)
        except TimeoutError:
            self._fail(member, "hang", "it reads no messages any more")
        except OSError:  # it is gone: what it still had to say comes first
            while member.phase != "down":
                self._read(member)

    def _due(self, member: Member) -> None:
        stepping = member.phase == "up" and not any(lane.resetting for lane in member.lanes)
        seconds = self.config.step_timeout if stepping else self.config.start_timeout
        member.deadline = time.monotonic() + seconds

    def _pump(self, done: Callable[[], bool]) -> None:
        """Handles what workers say, and their silence, until `done`."""
        while not done():
            now = time.monotonic()
            for member in self._members:
                if member.deadline <= now:
                    self._overdue(member)
            if done():
                return
            due = [m.deadline for m in self._members if m.phase == "down" or m.waiting]
            timeout = max(min(due, default=now + 1.0) - time.monotonic(), 0.0)
            for key, _ in self._selector.select(timeout):
                self._read(key.data)

    def _overdue(self, member: Member) -> None:
        if member.phase == "down":
            self._start(member)
        elif member.waiting:
            seconds = self.config.step_timeout if member.phase == "up" else self.config.start_timeout
            doing = {"hello": "starting", "map": "starting"}.get(member.phase, "its environments")
            self._fail(member, "hang", f"no answer from {doing} within {seconds:g} s")

    def _start(self, member: Member) -> None:
        config, process = self.config, member.process
        try:
            process.start(config.python, config.paths, config.environ, config.start_timeout)
        except OSError as error:
            field, allowed = (
                ("python", "a Python interpreter") if config.ray is None else ("ray", "a cluster's address")
            )
            raise PoolError(f"{field} is '{getattr(config, field)}'; allowed: {allowed} ({error.strerror})") from None
        self._selector.register(process.channel.socket, selectors.EVENT_READ, member)
        member.phase = "hello"
        self._due(member)
        try:
            process.say_hello(config.entry, config.config, config.environments, len(member.lanes))
        except OSError:
            self._fail(member, "crash", process.last_words())

    def _read(self, member: Member) -> None:
        if member.phase == "down":  # it failed while others were read
            return
        channel = member.process.channel
        try:
            alive = channel.fill()
            while member.phase != "down" and (message := channel.next()) is not None:
                self._handle(member, message)
            if not alive and member.phase != "down":
                self._fail(member, "crash", member.process.last_words())
        except (ProtocolError, OSError, LookupError, TypeError) as error:
            self._fail(member, "crash", f"{type(error).__name__}: {error}")

    def _handle(self, member: Member, message: dict[str, Any]) -> None:
        self._due(member)
        if message["op"] == "error":
            self._fail(member, str(message.get("kind")), str(message.get("message")))
        elif message["op"] == "hello" and member.phase == "hello":
            self._greeted(member, message)
        elif message["op"] == "mapped" and member.phase == "map":
            member.phase = "up"
            self._recover(member)
        elif message["op"] == "done" and member.phase == "up":
            tell_of_cut(self.spec.name, self.spec.horizon, message.get("cut"))
            self._done(member, member.lanes[message["lane"]], message["buffer"])
        else:
            raise ProtocolError(f"message {message['op']!r} came out of turn")

    def _greeted(self, member: Member, message: dict[str, Any]) -> None:
        theirs, ours = message.get("protocol"), protocol.PROTOCOL
        if theirs != ours:
            raise PoolError(f"worker {member.process.index} speaks protocol {theirs}, the learner {ours}")
        try:
            spec = Spec.from_json(message["spec"])
        except (ProtocolError, KeyError) as error:
            raise PoolError(f"worker {member.process.index}: {error}") from None
        if self._expected is None:
            self._expected = spec
        elif difference := protocol.spec_difference(self._expected, spec):
            raise PoolError(f"worker {member.process.index} does not fit: {difference}")
        member.versions = dict(message.get("versions", {}))
        member.phase = "map"
        member.process.map(spec, self.config.environments)

    def _recover(self, member: Member) -> None:
        """Resets the lanes of a worker that need it, into the tasks and trials they were in."""
        for lane in member.lanes:
            if lane.needs_reset and not lane.resetting and member.phase == "up":
                lane.resetting = True
                what = {"tasks": lane.tasks, "seeds": lane.seeds, "episodes": lane.episodes, "replay": lane.replay}
                self._tell(member, {"op": "reset", "lane": lane.index, "buffer": 1 - lane.buffer, **what})

    def _done(self, member: Member, lane: Lane, buffer: int) -> None:
        if buffer != 1 - lane.buffer or not (lane.resetting or lane.state == "busy"):
            raise ProtocolError("an answer came that was not asked for")
        member.failures = 0
        if lane.resetting:
            lane.resetting, lane.recovered = False, True
            self._settle(lane)
            return
        arrays = member.process.buffers[buffer]
        ended = (arrays["terminated"] | arrays["truncated"])[lane.rows]
        lane.episodes = [n + int(end) for n, end in zip(lane.episodes, ended, strict=True)]
        outcome = Outcome("step", lane.buffer)
        lane.buffer = buffer
        self._make_ready(lane, outcome)

    def _fail(self, member: Member, kind: str, message: str) -> None:
        """Books a fault, ends the process, and plans its restart."""
        index = member.process.index
        if member.phase != "down":
            self._selector.unregister(member.process.channel.socket)
        member.process.kill()
        member.phase = "down"
        line = f"worker {index} ({self.config.python}): {kind}: {' '.join(message.split())}"
        if not self._running:
            raise PoolError(line)
        self.faults.append(Fault(index, kind, message))
        self.restarts += 1
        member.failures += 1
        if self.restarts > self.config.max_restarts or kind == "setup":
            self.close()
            raise PoolError(f"stopped after {self.restarts} worker failures; the last one: {line}")
        pause = min(self.config.backoff * 2 ** (member.failures - 1), self.config.max_backoff)
        member.deadline = time.monotonic() + pause
        log.warning("%s; restart %d in %.1f s", line, self.restarts, pause)
        for lane in member.lanes:
            self._lose(lane)

    def _lose(self, lane: Lane) -> None:
        running = not lane.lost
        lane.resetting = lane.recovered = False
        if lane.dropped or not lane.tasks:
            return
        lane.lost = True
        if running:  # an episode that is lost is not played again
            lane.episodes = [n + 1 for n in lane.episodes]
            lane.replay = [[] for _ in lane.episodes]
        if (running and not self.spec.restorable) or lane.worker.failures >= GIVE_UP:
            lane.dropped = lane.untold = True
            self.dropped += len(lane.numbers)
            log.warning("environments %s are dropped until the next trial", lane.numbers.tolist())
            self._settle(lane)

    def _take(self, lanes: list[Lane]) -> Batch:
        """Copies what ready lanes have into fresh arrays, and makes them idle."""
        numbers = np.concatenate([lane.numbers for lane in lanes])
        names = [field for field in protocol.fields(self.spec, len(numbers)) if not field[0].startswith("final/")]
        out = {name: np.empty(shape, dtype) for name, dtype, shape in names}
        valid = np.ones(len(numbers), bool)
        start = 0
        for lane in lanes:
            here = slice(start, start + len(lane.numbers))
            _copy(out, lane, here)
            valid[here] = lane.outcome.kind in ("step", "reset")
            start = here.stop
        observation = {name.partition("/")[2]: value for name, value in out.items() if "/" in name}
        ended = out["terminated"] | out["truncated"]
        final = _final(observation, ended, lanes) if ended.any() else None
        for lane in lanes:
            lane.state = "idle"
            self._order.remove(lane)
            self._recover(lane.worker)
        out["truncated"] &= ~out["terminated"]
        plain = {name: out[name] for name in ("reward", "terminated", "truncated", "acted", "metrics")}
        return Batch(numbers, observation, valid=valid, final=final, legal=out.get("legal"), **plain)


def _copy(out: dict[str, np.ndarray], lane: Lane, here: slice) -> None:
    """A ready lane's arrays into the rows `here` of a batch."""
    buffers, outcome = lane.worker.process.buffers, lane.outcome
    for name, value in out.items():
        value[here] = buffers[lane.buffer][name][lane.rows]
    if outcome.kind != "step":  # nothing but the observation has a meaning
        for name in ("reward", "metrics", "terminated", "truncated"):
            out[name][here] = 0
        out["truncated"][here] = outcome.truncated
        out["acted"][here] = buffers[outcome.before]["acted"][lane.rows]


def _final(observation: dict[str, np.ndarray], ended: np.ndarray, lanes: list[Lane]) -> dict[str, np.ndarray]:
    """The last observations of ended episodes: the worker's, or for a lost one what the policy had acted on."""
    final = {name: value.copy() for name, value in observation.items()}
    start = 0
    for lane in lanes:
        rows = np.flatnonzero(ended[start : start + len(lane.numbers)])
        seen = lane.outcome.kind == "step"
        arrays = lane.worker.process.buffers[lane.buffer if seen else lane.outcome.before]
        for name in final if len(rows) else ():
            source = arrays[("final/" if seen else "observation/") + name][lane.rows]
            final[name][start + rows] = source[rows]
        start += len(lane.numbers)
    return final


def _processes(config: PoolConfig) -> list[Process] | list[RemoteProcess]:
    """Workers that are to be started. Raises PoolError where Ray is asked for and missing."""
    if config.ray is None:
        return [Process(index) for index in range(config.workers)]
    try:
        return [RemoteProcess(index, config.ray) for index in range(config.workers)]
    except ImportError as error:
        allowed = f"None without the package ray ({error}); pip install 'relic-jax[ray]'"
        raise PoolError(f"ray is {config.ray!r}; allowed: {allowed}") from None


def _check(config: PoolConfig) -> None:
    for field in ("workers", "environments", "groups"):
        if getattr(config, field) < 1:
            raise PoolError(f"{field} is {getattr(config, field)}; allowed: 1 or more")


def _split(config: PoolConfig, members: list[Member]) -> list[list[Lane]]:
    """Groups of lanes. Inside every worker where its environments can be split, so that no worker idles between
    groups; else every group gets workers of its own. Environments are numbered group by group.
    """
    groups: list[list[Lane]] = [[] for _ in range(config.groups)]
    inside = config.environments % config.groups == 0
    if not inside and config.workers % config.groups:
        allowed = f"a divisor of environments ({config.environments}) or of workers ({config.workers})"
        raise PoolError(f"groups is {config.groups}; allowed: {allowed}")
    lanes = config.groups if inside else 1
    size, number = config.environments // lanes, 0
    for index, group in enumerate(groups):
        per_group = config.workers // config.groups
        own = members if inside else members[index * per_group : (index + 1) * per_group]
        for member in own:
            rows = slice(index * size, (index + 1) * size) if inside else slice(0, size)
            lane = Lane(member, len(member.lanes), rows, np.arange(number, number + size, dtype=np.int32))
            number += size
            member.lanes.append(lane)
            group.append(lane)
    return groups


def _close(processes: Sequence[Process | RemoteProcess], selector: selectors.BaseSelector) -> None:
    """Ends processes that were asked to; those that have not after a moment are killed."""
    deadline = time.monotonic() + 2.0
    for process in processes:
        process.close(grace=max(deadline - time.monotonic(), 0.01) if process.asked_to_close else 0.0)
    selector.close()
