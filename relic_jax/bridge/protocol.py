"""The protocol between learner and workers: messages, array specs, and the layout of the shared memory.

Runs on Python 3.8 and newer with only numpy (annotations are never evaluated). The conversation consists of JSON
objects, one per line, over a stream socket:

    learner                                            worker
    hello: protocol, versions, entry, config, sizes →
                                                       ← hello: protocol, versions, specs
    map: bytes →                                       (both have a file descriptor of the memory)
                                                       ← mapped
    reset: lane, buffer, tasks, seeds, episodes, replay →
    step: lane, buffer →                               ← done: lane, buffer
                                                       ("cut": an episode was truncated at the horizon)
                                                       ← error: kind, message (then the worker ends)
    close →

A lane is a part of one worker's environments that is stepped together. Messages contain no arrays.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

PROTOCOL = 2  # version 2 added multi-discrete actions (`Spec.nvec`) and action masks (`Spec.masks`)
BUFFERS = 2  # the worker writes one; the other keeps the last good result
MAX_MESSAGE = 1 << 22
EXPERT = -1  # as an action: the environment's scripted expert acts; for continuous actions, NaN


class ProtocolError(RuntimeError):
    """The two sides are incompatible. The message is a single line."""


class ArraySpec(NamedTuple):
    """Dtype (numpy's name) and shape (without leading axes) of an array of one environment."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Spec(NamedTuple):
    """The description of an environment that a worker announces.

    Attributes:
        name: Name of the environment.
        observation: Arrays by name.
        action: One action. If `actions` > 0, int32 [] in 0 … actions − 1. With `nvec`, int32 [n] with component i in
            0 … nvec[i] − 1. Otherwise a continuous vector in [low, high].
        actions: Number of discrete actions; 0 for other kinds of actions.
        low: Lower bound of continuous actions.
        high: Upper bound of continuous actions.
        metrics: Names of the float32 numbers that accompany every step.
        horizon: Steps of the longest episode.
        restorable: Whether a trial can continue in a new process, given its task.
        expert: Whether there is a scripted expert.
        images: Names of the observations that are images, uint8 [H, W, C].
        bits: Names of the observations that consist of zeros and ones.
        left_out: Names of observations of the environment that are not passed on.
        nvec: Number of choices of each component of a multi-discrete action.
        masks: Whether a mask of legal actions, bool [mask_size], accompanies every observation. With `nvec`, the mask
            concatenates the masks of the components.
    """

    name: str
    observation: dict[str, ArraySpec]
    action: ArraySpec
    actions: int
    low: float
    high: float
    metrics: tuple[str, ...]
    horizon: int
    restorable: bool
    expert: bool
    images: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    nvec: tuple[int, ...] = ()
    masks: bool = False

    @property
    def mask_size(self) -> int:
        """Number of entries of a mask: one per choice."""
        return self.actions or sum(self.nvec)

    def asks_expert(self, action: np.ndarray) -> np.ndarray:
        """Return which actions, or components of actions, are `EXPERT`: bool, shape of `action`."""
        return np.isnan(action) if self.action.dtype.startswith("float") else action == EXPERT

    def allows(self, legal: np.ndarray, action: Any) -> bool:
        """Return whether a mask, bool [mask_size], allows an action."""
        sizes = np.array(self.nvec or (self.actions,))
        choices = np.atleast_1d(np.asarray(action))
        inside = (choices >= 0) & (choices < sizes)
        return bool(inside.all() and legal[np.cumsum(sizes) - sizes + choices].all())

    def playable(self, legal: np.ndarray) -> bool:
        """Return whether a mask allows any action."""
        starts = np.cumsum(self.nvec or (self.actions,))[:-1]
        return all(part.any() for part in np.split(legal, starts))

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values. Inverse of `from_json`."""
        observation = {name: [spec.dtype, list(spec.shape)] for name, spec in self.observation.items()}
        action = [self.action.dtype, list(self.action.shape)]
        lists: dict[str, Any] = {name: list(getattr(self, name)) for name in (*_NAMES, "nvec")}
        return {**self._asdict(), "observation": observation, "action": action, **lists}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Spec:
        """Convert from JSON values. Raises ProtocolError if a value is missing or malformed."""
        try:
            observation = {name: _array_spec(*value) for name, value in sorted(data["observation"].items())}
            values = {**data, "observation": observation, "action": _array_spec(*data["action"])}
            values.update({name: tuple(map(str, data[name])) for name in _NAMES if name in data})
            values["nvec"] = tuple(map(int, data.get("nvec", ())))
            spec = Spec(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"the worker's spec is malformed ({type(error).__name__}: {error})") from None
        if spec.nvec and (spec.actions or min(spec.nvec) < 1 or spec.action != ArraySpec("int32", (len(spec.nvec),))):
            raise ProtocolError(f"the worker's spec is malformed (nvec {spec.nvec}: action {spec.action})")
        if spec.masks and not spec.mask_size:
            raise ProtocolError("the worker's spec is malformed (masks: its actions are not discrete)")
        return spec


_NAMES = ("metrics", "images", "bits", "left_out")  # fields of `Spec` that are tuples of names


def _array_spec(dtype: str, shape: list[int]) -> ArraySpec:
    return ArraySpec(np.dtype(dtype).name, tuple(int(size) for size in shape))


def spec_difference(ours: Spec, theirs: Spec) -> str | None:
    """Describe the first field in which two specs differ. Return None if they are equal."""
    for field in Spec._fields:
        left, right = getattr(ours, field), getattr(theirs, field)
        if left != right:
            if isinstance(left, dict):
                left, right = ({name: str(spec) for name, spec in side.items()} for side in (left, right))
            return f"{field}: the learner expects {left}, the worker has {right}"
    return None


def fields(spec: Spec, environments: int) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    """Yield (name, dtype, shape) of every array in one buffer of a worker's memory. Shapes begin with `environments`.

    The learner writes `action`. `acted` is the executed action, which differs for `EXPERT`. observation/… is what the
    policy observes next, final/… the last observation of an episode (valid only if it ended), and `legal` the mask of
    the next actions, if there are masks.
    """
    m = (environments,)
    yield "action", np.dtype(spec.action.dtype), m + spec.action.shape
    yield "acted", np.dtype(spec.action.dtype), m + spec.action.shape
    yield "reward", np.dtype(np.float32), m
    yield "terminated", np.dtype(np.bool_), m
    yield "truncated", np.dtype(np.bool_), m
    yield "metrics", np.dtype(np.float32), (*m, len(spec.metrics))
    if spec.masks:
        yield "legal", np.dtype(np.bool_), (*m, spec.mask_size)
    for prefix in ("observation/", "final/"):
        for name, array in sorted(spec.observation.items()):
            yield prefix + name, np.dtype(array.dtype), m + array.shape


def layout(spec: Spec, environments: int) -> tuple[int, list[dict[str, tuple[int, Any, Any]]]]:
    """Return (total bytes, for each buffer name → (offset, dtype, shape)). Arrays are aligned to 64 bytes."""
    offset, buffers = 0, []
    for _ in range(BUFFERS):
        places = {}
        for name, dtype, shape in fields(spec, environments):
            places[name] = (offset, dtype, shape)
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            offset += -(-size // 64) * 64
        buffers.append(places)
    return max(offset, 64), buffers


def views(memory: Any, spec: Spec, environments: int) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each buffer as views of `memory`, an mmap of the size that `layout` returns."""
    _, buffers = layout(spec, environments)
    return [
        {name: np.ndarray(shape, dtype, memory, offset) for name, (offset, dtype, shape) in places.items()}
        for places in buffers
    ]


_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would create an encoder for every message


class Channel:
    """JSON messages over a stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message. Raises OSError if the other side is gone."""
        self.socket.sendall(_encode(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message. Return None if the other side is gone. Raises ProtocolError if it is malformed."""
        while b"\n" not in self._buffer:
            if not self.fill():
                return None
        return self.next()

    def fill(self) -> bool:
        """Read the available data, at least one byte. Return False if the other side is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        self._buffer += data
        if len(self._buffer) > MAX_MESSAGE:
            raise ProtocolError(f"a message is longer than {MAX_MESSAGE} bytes")
        return bool(data)

    def next(self) -> dict[str, Any] | None:
        """Return the next complete message, or None. Raises ProtocolError if it is malformed."""
        line, newline, rest = self._buffer.partition(b"\n")
        if not newline:
            return None
        self._buffer = rest
        try:
            message = json.loads(line.decode())
        except ValueError:
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            raise ProtocolError(f"not a message of this protocol: {line[:80]!r}")
        return message
