"""Workers on other machines: `process.Process` with a Ray actor between the learner and the worker.

    learner: Pool — RemoteProcess ··· Ray ··· machine of the cluster: Relay — Process — worker, as without Ray

A Relay is an actor that starts an ordinary worker beside it and forwards the messages of the pool. The pool and its
handling of faults are the same as without Ray. Only the transport differs: Ray serializes the arrays of each step and
copies them over the network. Messages consist of numpy arrays and dictionaries of JSON values; this package pickles
nothing, but Ray does. The machines of the cluster need this package.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.process import Process, hello
from relic_jax.bridge.protocol import Channel, Spec

Arrays = dict[str, np.ndarray]


class Relay:
    """The actor: one worker on its machine. It answers calls in order, as the worker does."""

    def __init__(self, index: int, python: str, paths: Sequence[str], extra: Mapping[str, str], timeout: float) -> None:
        """Start the worker.

        Args:
            index: Index of the worker.
            python: Its interpreter; "": that of the actor.
            paths: Folders that it searches for modules.
            extra: Environment variables to set.
            timeout: Seconds, see `Process.start`.
        """
        self._process, self._failure = Process(index), ""
        self._environments = 0
        self._spec: Spec | None = None
        python = python or sys.executable
        try:
            self._process.start(python, paths, extra, timeout)
            self._process.channel.socket.settimeout(None)  # the learner handles workers that hang
        except OSError as error:
            self._failure = f"python is '{python}'; allowed: a Python interpreter ({error.strerror})"

    def forward(
        self, message: dict[str, Any], rows: list[int], action: np.ndarray | None
    ) -> tuple[dict[str, Any], Arrays]:
        """Forward a message and return the answer with the arrays of the lane, if there are any.

        An answer with op "gone" says how the worker ended.

        Args:
            message: The message.
            rows: [first, stop) of the lane.
            action: Actions of a step.
        """
        process, lane_rows = self._process, slice(*rows)
        try:
            if message["op"] == "map" and self._spec is not None:
                process.map(self._spec, self._environments)
            else:
                if action is not None:
                    process.buffers[message["buffer"]]["action"][lane_rows] = action
                process.channel.send(message)
            answer = process.channel.receive()
        except OSError:
            answer = None
        if answer is None:
            return {"op": "gone", "message": self._failure or process.describe_end()}, {}
        if answer["op"] == "hello":
            self._spec, self._environments = Spec.from_json(answer["spec"]), message["environments"]
            answer["versions"]["node"] = _node()
        if answer["op"] != "done":
            return answer, {}
        return answer, _of_lane(process.buffers[answer["buffer"]], lane_rows)


def _of_lane(buffer: Arrays, rows: slice) -> Arrays:
    """Copy the arrays of a lane; last observations only if an episode ended."""
    ended = (buffer["terminated"][rows] | buffer["truncated"][rows]).any()
    names = (name for name in buffer if name != "action" and (ended or not name.startswith("final/")))
    return {name: buffer[name][rows].copy() for name in names}


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


class RemoteProcess:
    """A worker with the interface of `Process`. Its channel leads to a thread that turns messages into calls of Ray."""

    def __init__(self, index: int, address: str) -> None:
        """Prepare a worker of the cluster at `address`, as in `ray.init`. Raises ImportError if Ray is missing."""
        import ray

        self.index, self.close_requested = index, False
        self.buffers: list[Arrays] = []
        self._ray, self._address = ray, address
        self._relay: Any = None
        self._lock = threading.Lock()
        self._lanes = self._environments = 0
        self._end = ""
        self._channel: Channel | None = None

    @property
    def channel(self) -> Channel:
        """The control channel of a running worker."""
        if self._channel is None:
            raise OSError(f"worker {self.index} is not running")
        return self._channel

    @property
    def pid(self) -> int | None:
        """None: the process runs on another machine."""
        return None

    def start(self, python: str, paths: Sequence[str], extra: Mapping[str, str], send_timeout: float) -> None:
        """Start the actor and, through it, the worker. Raises OSError if there is no cluster."""
        ray = self._ray
        if not ray.is_initialized():
            try:
                ray.init(address=self._address, log_to_driver=False, configure_logging=False)
            except Exception as error:  # ray raises many kinds
                raise OSError(0, f"no Ray cluster at {self._address!r}: {' '.join(str(error).split())}") from None
        remote = ray.remote(num_cpus=1, max_restarts=0, max_concurrency=1, scheduling_strategy="SPREAD")(Relay)
        interpreter = "" if python == sys.executable else python
        self._relay = remote.remote(self.index, interpreter, list(paths), dict(extra), send_timeout)
        ours, theirs = socket.socketpair()
        ours.settimeout(send_timeout)
        self._end, self._channel = "", Channel(ours)
        calls: queue.Queue[Any] = queue.Queue()
        for serve in (self._pass_on, self._answer):
            threading.Thread(target=serve, args=(Channel(theirs), self._relay, calls), daemon=True).start()

    def _pass_on(self, channel: Channel, relay: Any, calls: queue.Queue[Any]) -> None:
        """Turn each message into a call, without waiting for the answers to earlier ones."""
        with contextlib.suppress(OSError):
            while (message := channel.receive()) is not None and message["op"] != "close":
                rows, action = [0, 0], None
                if "lane" in message:
                    size = self._environments // self._lanes
                    rows = [message["lane"] * size, (message["lane"] + 1) * size]
                if message["op"] == "step":
                    action = self.buffers[message["buffer"]]["action"][slice(*rows)].copy()
                calls.put((rows, relay.forward.remote(message, rows, action)))
        calls.put(None)

    def _answer(self, channel: Channel, relay: Any, calls: queue.Queue[Any]) -> None:
        """Forward answers to the pool in their order, each after its arrays."""
        with contextlib.suppress(OSError):
            while (call := calls.get()) is not None:
                rows, answer = call
                try:
                    message, arrays = self._ray.get(answer)
                except Exception as error:  # the actor or its machine is gone
                    message, arrays = {"op": "gone", "message": " ".join(str(error).split())[:300]}, {}
                with self._lock:
                    if self._relay is not relay:  # killed meanwhile: the arrays belong to its successor
                        return
                    if message["op"] == "gone":
                        self._end = message["message"]
                        break
                    for name, value in arrays.items():
                        self.buffers[message["buffer"]][name][slice(*rows)] = value
                channel.send(message)
            channel.socket.shutdown(socket.SHUT_RDWR)

    def send_hello(self, entry: str, config: Mapping[str, Any], environments: int, lanes: int) -> None:
        """Send the first message. Raises OSError if the worker is gone."""
        self._environments, self._lanes = environments, lanes
        self.channel.send(hello(entry, config, environments, lanes))

    def map(self, spec: Spec, environments: int) -> None:
        """Allocate the arrays on both sides. Raises OSError if the worker is gone."""
        size, _ = protocol.layout(spec, environments)
        if not self.buffers:
            self.buffers = protocol.views(bytearray(size), spec, environments)
        self.channel.send({"op": "map", "bytes": size})

    def describe_end(self) -> str:
        """Return how the worker ended, as reported by its machine."""
        return self._end

    def trim_log(self) -> None:
        """Do nothing: the output stays on the worker's machine."""

    def request_close(self) -> None:
        """Do nothing: the worker ends with its actor."""

    def kill(self, grace: float = 0.0) -> None:
        """End the actor, and with it the worker. Further calls do nothing."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.socket.shutdown(socket.SHUT_RDWR)
            self._channel.socket.close()
        with self._lock:
            relay, self._channel, self._relay = self._relay, None, None
        if relay is not None and self._ray.is_initialized():
            self._ray.kill(relay)

    def close(self, grace: float = 0.0) -> None:
        """End the worker and release the arrays."""
        self.kill()
        self.buffers = []
