"""The learner's record of ONE worker: a state machine of its process and of the lanes of its environments.

A worker is down, greeting (it was sent hello), mapping (it maps the shared memory), or up. A lane, a part of its
environments that steps together, is idle, busy (the caller waits for it), or ready (its outcome can be collected).
Messages of the worker, their absence, and the caller's requests move both. Nothing here waits: `pool` does.
"""

from __future__ import annotations

import logging
import selectors
import time
from typing import Any, Literal, NamedTuple

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.cluster import RemoteProcess
from relic_jax.bridge.config import Fault, PoolConfig, PoolError, PoolStoppedError
from relic_jax.bridge.process import Process
from relic_jax.bridge.protocol import ProtocolError, Spec
from relic_jax.horizon import warn_if_cut

log = logging.getLogger("relic_jax.bridge")
GIVE_UP = 3  # consecutive failures after which the environments of a worker are dropped


class Shared:
    """What all members of a pool share: the config, the spec, and the record of faults."""

    def __init__(self, config: PoolConfig, spec: Spec | None) -> None:
        self.config = config
        self.spec = spec
        """The spec that all workers must announce; None until the first one has."""
        self.selector = selectors.DefaultSelector()
        self.running = False
        """Whether all workers have started once. Until then, any failure is an error."""
        self.faults: list[Fault] = []
        self.restarts = 0
        self.dropped = 0

    def record(self, fault: Fault) -> str:
        """Count a fault and return it as text.

        Raises:
            PoolError: The pool has not started yet.
            PoolStoppedError: There were too many faults, or a restart cannot fix this one.
        """
        message = " ".join(fault.message.split())
        text = f"worker {fault.worker} ({self.config.python}): {fault.kind}: {message}"
        if not self.running:
            raise PoolError(text)
        self.faults.append(fault)
        self.restarts += 1
        if self.restarts > self.config.max_restarts or fault.kind == "setup":
            raise PoolStoppedError(f"stopped after {self.restarts} worker failures; the last one: {text}")
        return text


class Outcome(NamedTuple):
    """The result of a ready lane."""

    kind: Literal["step", "reset", "lost", "dropped"]
    """step and reset: as requested. lost and dropped: see `pool`."""
    before: int
    """The buffer with the observation that the policy acted on."""
    truncated: bool = False
    """Whether the episodes of a lost or dropped lane end with this outcome."""


class Lane:
    """A part of one worker's environments that is stepped together.

    Attributes:
        numbers: int32; indices of the environments in the pool.
        rows: Their rows in the worker's buffers.
        state: idle, busy (the caller waits for what it `awaits`), or ready (`outcome` can be collected).
        buffer: The worker's buffer with the newest good result.
        episodes: Episodes of the trial that have ended, per environment.
        replay: Actions that a reset repeats, per environment.
        lost: The current episode is gone; only a reset helps.
        resetting: The reset was sent.
        recovered: The result of the reset is in the other buffer.
        dropped: The environments stay as they are until the next trial.
        drop_pending: The caller has not learned yet that the lane was dropped.
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
        self.dropped = self.drop_pending = False

    @property
    def buffers(self) -> list[dict[str, np.ndarray]]:
        """The buffers of the worker."""
        return self.worker.process.buffers

    @property
    def needs_reset(self) -> bool:
        """Whether a reset must be sent. A ready lane waits: its other buffer can hold a last observation."""
        return self.lost and not (self.dropped or self.recovered or self.resetting or self.state == "ready")

    def begin_trial(self, tasks: list[Any], seeds: list[int], episodes: list[int], replay: list[list[Any]]) -> None:
        """Request the reset of all environments into new trials."""
        self.tasks, self.seeds, self.episodes, self.replay = tasks, seeds, episodes, replay
        self.state, self.awaits = "busy", "reset"
        self.lost, self.resetting, self.recovered = True, False, False
        self.dropped = self.drop_pending = False

    def step(self, actions: np.ndarray) -> None:
        """Request a step. Raises PoolError if one is pending."""
        if self.state != "idle":
            raise PoolError("send twice without receive")
        self.state, self.awaits = "busy", "step"
        target = 1 - self.buffer
        self.buffers[self.buffer]["acted"][self.rows] = actions  # reported if the worker fails
        if not (self.lost or self.dropped):
            self.buffers[target]["action"][self.rows] = actions
            self.worker.send({"op": "step", "lane": self.index, "buffer": target})
        self.settle()

    def reset_message(self) -> dict[str, Any]:
        """Return the message that puts the environments back into their tasks and trials."""
        trial = {"tasks": self.tasks, "seeds": self.seeds, "episodes": self.episodes, "replay": self.replay}
        return {"op": "reset", "lane": self.index, "buffer": 1 - self.buffer, **trial}

    def done(self, buffer: int) -> None:
        """Accept the result of a step or a reset. Raises ProtocolError if none is pending."""
        if buffer != 1 - self.buffer or not (self.resetting or self.state == "busy"):
            raise ProtocolError("unexpected answer: no request is pending")
        if self.resetting:
            self.resetting, self.recovered = False, True
            self.settle()
            return
        arrays = self.buffers[buffer]
        ended = (arrays["terminated"] | arrays["truncated"])[self.rows]
        if ended.any():
            self.episodes = [n + int(end) for n, end in zip(self.episodes, ended, strict=True)]
        self.state, self.outcome = "ready", Outcome("step", self.buffer)
        self.buffer = buffer

    def settle(self) -> None:
        """Make a busy lane ready if it is dropped or recovered."""
        if self.state != "busy":
            return
        if self.dropped:
            ends = self.drop_pending and self.awaits == "step"
            self.state, self.outcome = "ready", Outcome("dropped", self.buffer, ends)
            self.drop_pending = False
        elif self.recovered:
            kind: Literal["reset", "lost"] = "reset" if self.awaits == "reset" else "lost"
            self.state, self.outcome = "ready", Outcome(kind, self.buffer, self.awaits == "step")
            self.buffer, self.lost, self.recovered = 1 - self.buffer, False, False

    def lose(self, restorable: bool) -> bool:
        """Handle a failure of the worker. Return whether the lane is dropped because of it.

        Args:
            restorable: Whether a running trial can be continued.
        """
        running = not self.lost
        self.resetting = self.recovered = False
        if self.dropped or not self.tasks:
            return False
        self.lost = True
        if running:  # a lost episode is not repeated
            self.episodes = [n + 1 for n in self.episodes]
            self.replay = [[] for _ in self.episodes]
        if (running and not restorable) or self.worker.failures >= GIVE_UP:
            self.dropped = self.drop_pending = True
            self.settle()
        return self.dropped


class Member:
    """A worker of a pool.

    Attributes:
        process: The process, here or on a machine of a Ray cluster.
        phase: down (until `deadline`), hello or map (the answer to this message is pending), or up.
        deadline: Time (`time.monotonic`) by which an answer is due, or of the restart.
        failures: Consecutive failures.
        versions: Versions that the worker announced.
    """

    def __init__(self, process: Process | RemoteProcess, shared: Shared) -> None:
        self.process, self.shared = process, shared
        self.lanes: list[Lane] = []
        self.phase: Literal["down", "hello", "map", "up"] = "down"
        self.deadline = 0.0
        self.failures = 0
        self.versions: dict[str, str] = {}

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""
        return self.phase in ("hello", "map") or any(
            lane.resetting or (lane.state == "busy" and not lane.lost) for lane in self.lanes
        )

    def start(self) -> None:
        """Start the process and greet it. Raises PoolError if there is no such interpreter or cluster."""
        config, process = self.shared.config, self.process
        try:
            process.start(config.python, config.paths, config.environ, config.start_timeout)
        except OSError as error:
            if config.ray is None:
                field, value, allowed = "python", config.python, "a Python interpreter"
            else:
                field, value, allowed = "ray", config.ray, "a cluster's address"
            raise PoolError(f"{field} is '{value}'; allowed: {allowed} ({error.strerror})") from None
        self.shared.selector.register(process.channel.socket, selectors.EVENT_READ, self)
        self.phase = "hello"
        self._set_deadline()
        try:
            process.send_hello(config.entry, config.config, config.environments, len(self.lanes))
        except OSError:
            self.fail("crash", process.describe_end())

    def send(self, message: dict[str, Any]) -> None:
        """Send a message and set the time by which its answer is due."""
        try:
            self._set_deadline()
            self.process.channel.send(message)
        except TimeoutError:
            self.fail("hang", "it does not read its messages")
        except OSError:  # it is gone; handle the messages that it still sent first
            while self.phase != "down":
                self.read()

    def recover(self) -> None:
        """Reset the lanes that need it into the tasks and trials that they were in."""
        for lane in self.lanes:
            if lane.needs_reset and self.phase == "up":
                lane.resetting = True
                self.send(lane.reset_message())

    def read(self) -> None:
        """Handle the messages that have arrived."""
        if self.phase == "down":  # it failed while others were read
            return
        channel = self.process.channel
        try:
            alive = channel.fill()
            while self.phase != "down" and (message := channel.next()) is not None:
                self._handle(message)
            if not alive and self.phase != "down":
                self.fail("crash", self.process.describe_end())
        except (ProtocolError, OSError, LookupError, TypeError) as error:
            self.fail("crash", f"{type(error).__name__}: {error}")

    def overdue(self) -> None:
        """Restart a process that is down, or fail one that has not answered in time."""
        config = self.shared.config
        if self.phase == "down":
            self.start()
        elif self.waiting:
            seconds = config.step_timeout if self.phase == "up" else config.start_timeout
            activity = {"hello": "starting", "map": "starting"}.get(self.phase, "its environments")
            self.fail("hang", f"no answer from {activity} within {seconds:g} s")

    def fail(self, kind: str, message: str) -> None:
        """Record a fault, end the process, and schedule its restart. Raises PoolError as `Shared.record` does."""
        config = self.shared.config
        if self.phase != "down":
            self.shared.selector.unregister(self.process.channel.socket)
        self.process.kill()
        self.phase = "down"
        text = self.shared.record(Fault(self.process.index, kind, message))
        self.failures += 1
        pause = min(config.backoff * 2 ** (self.failures - 1), config.max_backoff)
        self.deadline = time.monotonic() + pause
        log.warning("%s; restart %d in %.1f s", text, self.shared.restarts, pause)
        for lane in self.lanes:
            if lane.lose(self._spec.restorable):
                self.shared.dropped += len(lane.numbers)
                log.warning("environments %s are dropped until the next trial", lane.numbers.tolist())

    @property
    def _spec(self) -> Spec:
        if self.shared.spec is None:
            raise PoolError("the workers have not announced their spec yet")
        return self.shared.spec

    def _set_deadline(self) -> None:
        config = self.shared.config
        stepping = self.phase == "up" and not any(lane.resetting for lane in self.lanes)
        self.deadline = time.monotonic() + (config.step_timeout if stepping else config.start_timeout)

    def _handle(self, message: dict[str, Any]) -> None:
        self._set_deadline()
        if message["op"] == "error":
            self.fail(str(message.get("kind")), str(message.get("message")))
        elif message["op"] == "hello" and self.phase == "hello":
            self._greeted(message)
        elif message["op"] == "mapped" and self.phase == "map":
            self.phase = "up"
            self.recover()
        elif message["op"] == "done" and self.phase == "up":
            warn_if_cut(self._spec.name, self._spec.horizon, message.get("cut"))
            self.lanes[message["lane"]].done(message["buffer"])
            self.failures = 0
        else:
            raise ProtocolError(f"unexpected message {message['op']!r}")

    def _greeted(self, message: dict[str, Any]) -> None:
        """Check the protocol and the spec of the worker, then let it map the memory."""
        index, shared = self.process.index, self.shared
        theirs, ours = message.get("protocol"), protocol.PROTOCOL
        if theirs != ours:
            raise PoolError(f"worker {index} speaks protocol {theirs}, the learner {ours}")
        try:
            spec = Spec.from_json(message["spec"])
        except (ProtocolError, KeyError) as error:
            raise PoolError(f"worker {index}: {error}") from None
        if shared.spec is None:
            shared.spec = spec
        elif difference := protocol.spec_difference(shared.spec, spec):
            raise PoolError(f"worker {index} does not fit: {difference}")
        self.versions = dict(message.get("versions", {}))
        self.phase = "map"
        self.process.map(spec, shared.config.environments)
