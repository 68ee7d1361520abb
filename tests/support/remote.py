"""An object in another interpreter, whose attributes and methods are used from here.

`Remote(python, "relic_jax.envs.habitat.worker:make", options)` starts PYTHON, which needs only numpy and what the entry
imports, and behaves like the object that the entry returns: values are copied, other objects stay there. The same file
is the program of the other process (Python 3.8).
"""

from __future__ import annotations

import collections
import importlib
import os
import pickle
import socket
import struct
import subprocess
import sys
from typing import Any

import numpy as np


def pack(value: Any) -> Any:
    """Return a value as tagged tuples, since pickles of arrays depend on the version of numpy. Raises TypeError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return ("value", value)
    if isinstance(value, np.generic):
        return ("value", value.item())
    if isinstance(value, np.ndarray):
        return ("array", value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, dict):
        return ("dict", [(pack(key), pack(item)) for key, item in value.items()])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("record", type(value).__name__, list(value._fields), [pack(item) for item in value])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [pack(item) for item in value])
    raise TypeError(f"{type(value)} stays in its process")


def unpack(packed: Any) -> Any:
    """Return the value that was packed."""
    tag, *rest = packed
    if tag == "value":
        return rest[0]
    if tag == "array":
        return np.frombuffer(rest[2], np.dtype(rest[0])).reshape(rest[1]).copy()
    if tag == "dict":
        return {unpack(key): unpack(item) for key, item in rest[0]}
    if tag == "record":
        return collections.namedtuple(rest[0], rest[1])(*map(unpack, rest[2]))
    return {"list": list, "tuple": tuple}[tag](map(unpack, rest[0]))


def send(connection: socket.socket, message: Any) -> None:
    """Send a message, preceded by its length."""
    data = pickle.dumps(message, 4)
    connection.sendall(struct.pack("<Q", len(data)) + data)


def receive(connection: socket.socket) -> Any:
    """Return the next message. Raises EOFError if the other process is gone."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = connection.recv(count - len(data))
            if not part:
                raise EOFError("the other process is gone")
            data += part
        return data

    return pickle.loads(exactly(struct.unpack("<Q", exactly(8))[0]))


class Remote:
    """The object that `entry` makes in another interpreter.

    Raises:
        SetupError: As raised there.
    """

    def __init__(self, python: str, entry: str, options: dict[str, Any]) -> None:
        from relic_jax.bridge.process import worker_environment

        ours, theirs = socket.socketpair()
        command = [python, os.path.abspath(__file__), str(theirs.fileno())]
        process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=worker_environment(0, (), {}),
        )  # fmt: skip
        theirs.close()
        self.__dict__.update(_connection=ours, _process=process, _path="")
        self._ask("make", entry, pack(options))

    def _ask(self, *request: Any) -> Any:
        try:
            send(self._connection, request)
            kind, answer = receive(self._connection)
        except (EOFError, OSError):
            code = self._process.wait()
            raise RuntimeError(f"it ended with {code}; {self._process.stderr.read()[-1000:]!r}") from None
        if kind == "error":
            name, text = answer
            module, _, name = name.rpartition(".")
            raise getattr(importlib.import_module(module), name)(text)
        return unpack(answer) if kind == "value" else Part(self, answer)

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, pack(value))

    def end(self) -> None:
        """Close the object and end its process."""
        self._connection.close()
        self._process.wait(30)
        self._process.stderr.close()


class Part:
    """A method or an object inside a remote object."""

    def __init__(self, owner: Remote, path: str) -> None:
        self._owner, self._path = owner, path

    def __getattr__(self, name: str) -> Any:
        return self._owner._ask("get", f"{self._path}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._owner._ask("call", self._path, pack(args), pack(kwargs))


def serve(connection: socket.socket) -> None:
    """Make the object and answer requests until the other side is gone."""
    root: Any = None
    kept: dict[str, Any] = {}  # results of calls that stay here

    def resolve(path: str) -> Any:
        first, *names = path.split(".")
        value = kept[first] if first in kept else getattr(root, first)
        for name in names:
            value = getattr(value, name)
        return value

    while True:
        try:
            kind, where, *rest = receive(connection)
        except (EOFError, OSError):
            break
        try:
            result = None
            if kind == "make":
                module, _, name = where.partition(":")
                root = getattr(importlib.import_module(module), name)(**unpack(rest[0]))
            elif kind == "set":
                setattr(root, where, unpack(rest[0]))
            else:
                result = resolve(where)
                if kind == "call":
                    result = result(*unpack(rest[0]), **unpack(rest[1]))
            try:
                answer = ("value", pack(result))
            except TypeError:
                if kind == "call":
                    where = f"result-{len(kept)}"
                    kept[where] = result
                answer = ("part", where)
        except Exception as error:
            answer = ("error", (f"{type(error).__module__}.{type(error).__name__}", str(error)))
        send(connection, answer)
    if root is not None:
        root.close()


if __name__ == "__main__":
    import relic_jax_worker

    sys.meta_path.insert(0, relic_jax_worker.LibraryFinder)
    serve(socket.socket(fileno=int(sys.argv[1])))
