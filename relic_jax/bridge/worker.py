"""The worker: one process with M environments, driven by messages, which answers through shared memory.

Runs on Python 3.8 and newer with only numpy and the simulator. An environment is any object with

    spec                      a `protocol.Spec`
    reset(task, seed)         starts an episode of a task (a JSON value) and returns the observation, {name: array}
    step(action)              returns (observation, reward, terminated, truncated, {metric: number}); the worker
                              truncates episodes at `spec.horizon` if the environment does not
    expert()                  returns the scripted expert's action; only if `spec.expert`
    legal()                   returns the mask of legal actions, bool [spec.mask_size]; only if `spec.masks`
    close()                   releases resources

The entry `module:function` makes one environment from the config, a JSON object of keyword arguments. The worker resets
an environment after each episode, with a seed derived from the seed of the trial and the index of the episode. A trial
therefore depends only on (task, seed, actions).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import platform
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.protocol import Channel, ProtocolError, Spec


class BadValueError(ValueError):
    """The environment returned a value that its spec does not allow."""


class SetupError(RuntimeError):
    """The environment cannot be made, and a restart does not help. Entries raise it with a one-line message."""


ACTIVITY = "relic-jax worker: "
"""Prefix of the lines on stderr in which a worker process names its activity."""
_is_worker = False  # whether this process was started for an environment or a call
_activities: list[str] = []  # of this process, the outermost first


@contextlib.contextmanager
def activity(text: str) -> Iterator[None]:
    """Name what the process does, such as "loading scene 'a'", so that `process` can report it if native code crashes.

    Activities can be nested. Does nothing in the learner.
    """
    if not _is_worker:
        yield
        return
    _activities.append(text)
    _name_activities()
    try:
        yield
    finally:
        _activities.pop()
        _name_activities()


def _name_activities() -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{ACTIVITY}{', '.join(_activities)}\n".encode())  # unbuffered: the process can end at any time


def episode_seed(seed: int, episode: int) -> int:
    """Return the seed, 0 … 2^31 − 1, of episode `episode` (from 0) of the trial with seed `seed`."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0] >> 1)


class Slot:
    """One environment with its row in the shared memory.

    Attributes:
        count: Steps of the current episode.
        cut: Whether the worker has truncated an episode at the horizon.
    """

    def __init__(self, env: Any, index: int) -> None:
        self.env, self.spec, self.index = env, env.spec, index
        self.task: Any = None
        self.seed = 0
        self.episode = 0
        self.legal = np.ones(0, bool)
        self.count = 0
        self.cut = False

    def reset(self, buffer: dict[str, np.ndarray], task: Any, seed: int, episode: int, replay: list[Any]) -> None:
        """Start a trial, or continue one at its episode `episode` after the actions `replay`."""
        self.task, self.seed, self.episode = task, seed, episode
        self._begin(buffer)
        for action in replay:
            if self.spec.masks and not self.spec.allows(self.legal, action):
                return  # the action was taken in another state
            buffer["action"][self.index] = action
            self.step(buffer)

    def _begin(self, buffer: dict[str, np.ndarray]) -> None:
        self.count = 0
        observation = self.env.reset(self.task, episode_seed(self.seed, self.episode))
        self._write(buffer, "observation/", observation)
        self._write_legal(buffer)

    def step(self, buffer: dict[str, np.ndarray]) -> None:
        """Take the action in the buffer. If the episode ends, start the next one."""
        i = self.index
        action = buffer["action"][i]
        if self.spec.asks_expert(action).any():
            action = self.env.expert()
            if self.spec.masks and not self.spec.allows(self.legal, action):
                raise BadValueError(f"the expert's action {action!r} is not legal")
        buffer["acted"][i] = action
        action = int(action) if self.spec.actions else np.array(action)
        observation, reward, terminated, truncated, metrics = self.env.step(action)
        self.count += 1
        if self.count >= self.spec.horizon and not (terminated or truncated):
            truncated = self.cut = True
        buffer["reward"][i] = to_finite("reward", reward, np.dtype(np.float32))
        buffer["terminated"][i], buffer["truncated"][i] = terminated, truncated and not terminated
        for column, name in enumerate(self.spec.metrics):
            buffer["metrics"][i, column] = to_finite(f"metric {name!r}", metrics[name], np.dtype(np.float32))
        ended = terminated or truncated
        self._write(buffer, "final/" if ended else "observation/", observation)
        if ended:
            self.episode += 1
            self._begin(buffer)
        else:
            self._write_legal(buffer)

    def _write_legal(self, buffer: dict[str, np.ndarray]) -> None:
        if not self.spec.masks:
            return
        legal = np.asarray(self.env.legal())
        if legal.dtype != bool or legal.shape != (self.spec.mask_size,):
            value = f"{legal.dtype}{list(legal.shape)}"
            raise BadValueError(f"the mask of legal actions is {value}; allowed: bool[{self.spec.mask_size}]")
        if not self.spec.playable(legal):
            raise BadValueError("the mask of legal actions allows no action")
        buffer["legal"][self.index] = self.legal = legal.copy()

    def _write(self, buffer: dict[str, np.ndarray], prefix: str, observation: dict[str, Any]) -> None:
        for name, spec in self.spec.observation.items():
            value = np.asarray(observation[name])
            place = buffer[prefix + name]
            if value.shape != spec.shape or not np.can_cast(value.dtype, place.dtype, "same_kind"):
                actual = f"{value.dtype}{list(value.shape)}"
                raise BadValueError(f"observation {name!r} is {actual}; allowed by its spec: {spec}")
            place[self.index] = to_finite(f"observation {name!r}", value, place.dtype)


FLOAT32_MAX = float(np.finfo(np.float32).max)


def to_finite(name: str, value: Any, dtype: np.dtype) -> Any:
    """Convert `value` to an array of `dtype`, or return it unchanged if assignment to such an array converts it.

    Raises:
        BadValueError: A number is not finite or does not fit. The test follows the cast, since 1e300 is infinite in
            float32, and uses float32 for wider floats, since the learner reads these as float32.
    """
    if type(value) is float and dtype.kind == "f" and -FLOAT32_MAX <= value <= FLOAT32_MAX:
        return value  # the usual case for rewards and metrics; the code below takes 15 µs
    array = np.asarray(value)
    if array.dtype == dtype and (dtype.kind in "iub" or (dtype == np.float32 and np.isfinite(array).all())):
        return array
    narrow = np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize > 4 else dtype
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(dtype)
            bad = ~np.isfinite(cast.astype(narrow)) if dtype.kind == "f" else cast != array
    except (TypeError, ValueError, OverflowError):
        raise BadValueError(f"{name} is {value!r}, not a number") from None
    if bad.any():
        raise BadValueError(f"{name} is {array[bad].flat[0]}; allowed: finite numbers that fit in {narrow}")
    return cast


class Worker:
    """Answers the messages of the learner until it receives close or the learner is gone."""

    def __init__(self, channel: Channel, memory_fd: int) -> None:
        self.channel, self.memory_fd = channel, memory_fd
        self.slots: list[Slot] = []
        self.lanes: list[list[Slot]] = []
        self.buffers: list[dict[str, np.ndarray]] = []

    def run(self) -> int:
        """Answer messages and return the exit status. An error of the environment is reported and ends the worker."""
        lane = None
        try:
            while True:
                message = self.channel.receive()
                if message is None or message["op"] == "close":
                    return 0
                lane = message.get("lane")
                getattr(self, "on_" + message["op"])(message)
        except (BrokenPipeError, ConnectionError):
            return 0
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())
            if isinstance(error, (SetupError, ProtocolError)):
                kind = "setup"
            else:
                kind = "value" if isinstance(error, BadValueError) else "exception"
                text = f"{type(error).__name__}: {text}"
            self.channel.send({"op": "error", "kind": kind, "lane": lane, "message": text[:1000]})
            return 1
        finally:
            for slot in self.slots:
                slot.env.close()

    def on_hello(self, message: dict[str, Any]) -> None:
        """Check the protocol of the learner, make the environments, and announce them."""
        if message.get("protocol") != protocol.PROTOCOL:
            ours, theirs = protocol.PROTOCOL, message.get("protocol")
            raise ProtocolError(f"the learner speaks protocol {theirs}, the worker {ours}")
        make = load_entry(message["entry"])
        count = message["environments"]
        self.slots = [Slot(make(**message["config"]), index) for index in range(count)]
        size = count // message["lanes"]
        self.lanes = [self.slots[start : start + size] for start in range(0, count, size)]
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        versions.update(getattr(self.slots[0].env, "versions", {}))
        spec = self.slots[0].env.spec
        reply = {"op": "hello", "protocol": protocol.PROTOCOL, "versions": versions, "spec": spec.to_json()}
        self.channel.send(reply)

    def on_map(self, message: dict[str, Any]) -> None:
        """Map the memory, whose size the learner has set."""
        spec: Spec = self.slots[0].env.spec
        size, _ = protocol.layout(spec, len(self.slots))
        if size != message["bytes"]:
            raise ProtocolError("the learner maps {} bytes, the worker {}".format(message["bytes"], size))
        memory = mmap.mmap(self.memory_fd, size)
        self.buffers = protocol.views(memory, spec, len(self.slots))
        self.channel.send({"op": "mapped"})

    def on_reset(self, message: dict[str, Any]) -> None:
        """Reset the environments of a lane into their tasks."""
        buffer = self.buffers[message["buffer"]]
        trials = zip(*(message[name] for name in ("tasks", "seeds", "episodes", "replay")))  # noqa: B905 (Python 3.8)
        for slot, trial in zip(self.lanes[message["lane"]], trials):  # noqa: B905
            slot.reset(buffer, *trial)
        self._done(message)

    def on_step(self, message: dict[str, Any]) -> None:
        """Step the environments of a lane with the actions in the buffer."""
        buffer = self.buffers[message["buffer"]]
        for slot in self.lanes[message["lane"]]:
            slot.step(buffer)
        self._done(message)

    def _done(self, message: dict[str, Any]) -> None:
        answer = {"op": "done", "lane": message["lane"], "buffer": message["buffer"]}
        if any(slot.cut for slot in self.slots):
            answer["cut"] = True
        self.channel.send(answer)


def load_entry(entry: str) -> Any:
    """Return the function `module:function`. Raises SetupError if it cannot be imported."""
    module, _, name = entry.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        where = f"{sys.executable} (Python {platform.python_version()})"
        raise SetupError(f"{where} cannot load {entry!r}: {error}") from None


def end_with_learner(lifeline: int) -> None:
    """End this process when the learner ends for any reason, even if native code never returns.

    On Linux, the kernel then sends SIGIO to the process group, whose default action ends it. Elsewhere, a thread ends
    the process group.

    Args:
        lifeline: Read end of a pipe without data, whose write end closes when the learner ends.
    """
    if sys.platform == "linux":
        import fcntl

        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:
        os.read(lifeline, 1)  # returns when the other end closes, even if that was before F_SETOWN
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def answer(call: dict[str, Any]) -> int:
    """Call `entry` with `arguments` and write {"result": JSON} or {"error": message} to the descriptor `answer`."""
    try:
        reply = {"result": load_entry(call["entry"])(**call["arguments"])}
    except SetupError as error:
        reply = {"error": " ".join(str(error).split())}
    with os.fdopen(call["answer"], "w", encoding="utf-8") as file:
        json.dump(reply, file)
    return 0


def main(arguments: list[str]) -> int:
    """Run a worker, or a single call (see `answer`), and return the exit status.

    Args:
        arguments: One JSON object with the inherited descriptors control, memory and lifeline, or with a call.
    """
    global _is_worker
    _is_worker = True
    descriptors = json.loads(arguments[0])
    if "answer" in descriptors:
        return answer(descriptors)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the learner handles Ctrl-C
    end_with_learner(descriptors["lifeline"])
    return Worker(Channel(socket.socket(fileno=descriptors["control"])), descriptors["memory"]).run()
