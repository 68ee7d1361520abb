"""What both sides of the bridge agree on: messages, array specs, and the layout of the shared memory.

Runs on Python 3.8 and newer with numpy alone (annotations are never evaluated). The conversation, one JSON object per
line over a stream socket:

    learner                                            worker
    hello: protocol, versions, entry, config, sizes →
                                                       ← hello: protocol, versions, specs
    map: bytes →                                       (the memory is a file descriptor that both have)
                                                       ← mapped
    reset: lane, buffer, tasks, seeds, episodes, replay →
    step: lane, buffer →                               ← done: lane, buffer
                                                       ("cut": an episode was truncated at the horizon)
                                                       ← error: kind, message (then the worker ends)
    close →

A lane is a part of one worker's environments that is stepped together. Arrays never travel in messages.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

PROTOCOL = 2  # 2: several discrete actions at a time (`Spec.nvec`), and masks of legal actions (`Spec.masks`)
BUFFERS = 2  # the worker writes one while the other, the last good one, is kept
MAX_MESSAGE = 1 << 22
EXPERT = -1  # in the place of an action: the environment's scripted expert acts; NaN in that of a continuous one


class ProtocolError(RuntimeError):
    """The two sides do not fit together. One line that says which side has what."""


class ArraySpec(NamedTuple):
    """One array of one environment. dtype: numpy's name. shape: without leading axes."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Spec(NamedTuple):
    """What an environment is, as the worker announces it.

    observation: arrays by name. action: one action; for `actions` > 0 it is int32 [] in 0 … actions − 1, with `nvec`
    int32 [n] with 0 … nvec[i] − 1 in component i, else continuous in [low, high]. masks: with every observation comes
    which actions are legal, bool [mask_size], with `nvec` those of one component after the other's. metrics: names of
    the float32 numbers that come with every step. horizon: steps of the longest episode. restorable: a trial can
    go on in a new process given its task. expert: there is a scripted expert.
    images: names of observations that are images, uint8 [H, W, C]. bits: of those that are zeros and ones. left_out:
    names of what the environment shows and the worker does not pass on.
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
        """Entries of a mask: one for each choice."""
        return self.actions or sum(self.nvec)

    def asks_expert(self, action: np.ndarray) -> np.ndarray:
        """Where an action, or a component of it, is `EXPERT`: bool, shape of `action`."""
        return np.isnan(action) if self.action.dtype.startswith("float") else action == EXPERT

    def allows(self, legal: np.ndarray, action: Any) -> bool:
        """Whether an action is legal by a mask, bool [mask_size]."""
        sizes = np.array(self.nvec or (self.actions,))
        choices = np.atleast_1d(np.asarray(action))
        inside = (choices >= 0) & (choices < sizes)
        return bool(inside.all() and legal[np.cumsum(sizes) - sizes + choices].all())

    def playable(self, legal: np.ndarray) -> bool:
        """Whether a mask leaves an action."""
        starts = np.cumsum(self.nvec or (self.actions,))[:-1]
        return all(part.any() for part in np.split(legal, starts))

    def to_json(self) -> dict[str, Any]:
        """JSON-able; inverse of `from_json`."""
        observation = {name: [spec.dtype, list(spec.shape)] for name, spec in self.observation.items()}
        action = [self.action.dtype, list(self.action.shape)]
        lists: dict[str, Any] = {name: list(getattr(self, name)) for name in (*_NAMES, "nvec")}
        return {**self._asdict(), "observation": observation, "action": action, **lists}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Spec:
        """Raises ProtocolError where something is missing or malformed."""
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


_NAMES = ("metrics", "images", "bits", "left_out")  # fields of a Spec that are tuples of names


def _array_spec(dtype: str, shape: list[int]) -> ArraySpec:
    return ArraySpec(np.dtype(dtype).name, tuple(int(size) for size in shape))


def spec_difference(ours: Spec, theirs: Spec) -> str | None:
    """The first field in which two specs differ, as text; None where they are equal."""
    for field in Spec._fields:
        left, right = getattr(ours, field), getattr(theirs, field)
        if left != right:
            if isinstance(left, dict):
                left, right = ({name: str(spec) for name, spec in side.items()} for side in (left, right))
            return f"{field}: the learner expects {left}, the worker has {right}"
    return None


def fields(spec: Spec, environments: int) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    """(name, dtype, shape) of every array in one buffer of a worker's memory. Shapes begin with `environments`.

    action: what the learner writes. acted: what was done (differs for `EXPERT`). observation/…: what the policy sees
    next; final/…: the last observation of an episode, valid where it ended. legal: what can be done next, where there
    are masks.
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
    """(bytes in all, for each buffer name → (offset, dtype, shape)). Arrays begin at multiples of 64 bytes."""
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
    """The arrays of each buffer, lying in `memory` (an mmap of `layout`'s size)."""
    _, buffers = layout(spec, environments)
    return [
        {name: np.ndarray(shape, dtype, memory, offset) for name, (offset, dtype, shape) in places.items()}
        for places in buffers
    ]


class Channel:
    """JSON messages over a stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message whole. Raises OSError where the other side is gone."""
        self.socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; waits for it. None: the other side is gone. Raises ProtocolError on what is no message."""
        while b"\n" not in self._buffer:
            if not self.fill():
                return None
        return self.next()

    def fill(self) -> bool:
        """Reads what has come (waits for at least a byte). False: the other side is gone."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionError:
            data = b""
        self._buffer += data
        if len(self._buffer) > MAX_MESSAGE:
            raise ProtocolError(f"a message is longer than {MAX_MESSAGE} bytes")
        return bool(data)

    def next(self) -> dict[str, Any] | None:
        """The next message that has come whole, None where there is none. Raises ProtocolError."""
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
