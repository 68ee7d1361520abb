"""The processes of a run find each other before they connect through `jax.distributed`.

If another program listens at the port, JAX waits for minutes and then aborts the process with a stack trace. If that
program is another run, JAX can also disturb it. Process 0 therefore first listens at the port without JAX, and sends
`GREETING` to every connection. The others answer with one line of JSON: their number and the number of processes. When
all have answered, process 0 sends an empty JSON object to each and closes the port, and JAX opens it again. If the
answers are inconsistent or one is missing, process 0 sends a JSON object with an error instead.
"""

from __future__ import annotations

import contextlib
import errno
import json
import selectors
import socket
import time
from typing import Any, BinaryIO

from relic_jax.errors import ConfigError, SharedError

GREETING = b"relic-jax 1\n"
"""The first line that process 0 sends. Other programs do not send it."""
FOREIGN_SECONDS = 15.0
"""Time after which a process ends if only another program answers at the address of process 0."""
OPEN_SECONDS = 60.0
"""Longest time until JAX opens the port after the processes have found each other."""
MAX_LINE = 1000
"""Largest number of bytes of a line. Process 0 closes a connection that sends more."""
MAX_LISTED = 20
"""Largest number of missing processes that an error lists."""


def meet(coordinator: str, count: int, index: int, seconds: float) -> None:
    """Wait until all processes have started.

    Args:
        coordinator: HOST:PORT of process 0.
        count: Number of processes.
        index: Number of this process, from 0.
        seconds: Longest time that process 0 waits for the others, and that they wait for process 0.

    Raises:
        SharedError: In all processes but 0, if process 0 has raised ConfigError.
        ConfigError: If the port is in use, a process is missing, two processes have the same number, or another
            program answers.
    """
    if index == 0:
        _host(coordinator, count, seconds)
    elif error := _ask(coordinator, count, index, seconds):
        raise SharedError(error)
    else:
        _connect(coordinator, time.monotonic(), OPEN_SECONDS).close()


def _host(coordinator: str, count: int, seconds: float) -> None:
    """Wait for the other processes as process 0."""
    connections: dict[socket.socket, bytearray] = {}
    reply: dict[str, str] = {}
    try:
        with _listener(coordinator) as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            _gather(listener, selector, connections, count, seconds)
    except ConfigError as error:
        reply = {"error": str(error)}
        raise
    finally:
        for connection in connections:
            with contextlib.suppress(OSError):  # the process has ended
                connection.sendall(json.dumps(reply).encode() + b"\n")
            connection.close()


def _listener(coordinator: str) -> socket.socket:
    """Listen at the port of process 0, on all addresses, as JAX does."""
    dual = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", int(coordinator.rpartition(":")[2])),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=128,
        )
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise ConfigError(f"coordinator is {coordinator!r}; allowed: a free port ({reason})") from None


def _gather(
    listener: socket.socket,
    selector: selectors.BaseSelector,
    connections: dict[socket.socket, bytearray],
    count: int,
    seconds: float,
) -> None:
    """Accept connections, and add the received bytes to `connections`, until all other processes have answered."""
    end, members = time.monotonic() + seconds, dict[int, socket.socket]()
    while len(members) < count - 1:
        ready = selector.select(max(end - time.monotonic(), 0))
        if not ready and time.monotonic() >= end:
            missing = _listed([index for index in range(1, count) if index not in members])
            allowed = f"the number of processes that start within {seconds:g} s (missing: process {missing})"
            raise ConfigError(f"num-processes is {count}; allowed: {allowed}")
        for key, _ in ready:
            connection: Any = key.fileobj
            if connection is listener:
                _greet(listener, selector, connections)
            elif _read(connection, connections[connection]):
                _admit(connection, connections[connection], members, count)
            else:
                selector.unregister(connection)
                connection.close()
                del connections[connection]
                members = {index: other for index, other in members.items() if other is not connection}


def _listed(indices: list[int]) -> str:
    """Return a list of numbers, shortened so that an error with it fits into a line of `MAX_LINE` bytes."""
    text = ", ".join(map(str, indices[:MAX_LISTED]))
    return text if len(indices) <= MAX_LISTED else f"{text}, … and {len(indices) - MAX_LISTED} more"


def _greet(
    listener: socket.socket, selector: selectors.BaseSelector, connections: dict[socket.socket, bytearray]
) -> None:
    """Accept a connection and send the greeting."""
    with contextlib.suppress(OSError):  # the process has ended
        connection, _ = listener.accept()
        connection.sendall(GREETING)
        connections[connection] = bytearray()
        selector.register(connection, selectors.EVENT_READ)


def _read(connection: socket.socket, buffer: bytearray) -> bool:
    """Append the received bytes to `buffer`. Return whether the connection is still usable."""
    try:
        data = connection.recv(MAX_LINE)
    except OSError:
        data = b""
    buffer += data
    return bool(data) and len(buffer) <= MAX_LINE


def _admit(connection: socket.socket, line: bytearray, members: dict[int, socket.socket], count: int) -> None:
    """Add a process to `members` if its line is complete. Lines of other programs are ignored."""
    if not line.endswith(b"\n"):
        return
    try:
        hello = json.loads(line)
        number, index = int(hello["count"]), int(hello["index"])
    except (ValueError, KeyError, TypeError):
        return
    if number != count:
        raise ConfigError(f"num-processes is {number} on process {index}; allowed: {count}, as on process 0")
    if members.setdefault(index, connection) is not connection:
        raise ConfigError(f"process-id is {index} in two processes; allowed: a different number in each")


def _ask(coordinator: str, count: int, index: int, seconds: float) -> str | None:
    """Wait for process 0 as another process. Return its error, or None."""
    start, foreign = time.monotonic(), float("inf")
    while True:
        with _connect(coordinator, start, seconds) as connection, connection.makefile("rb") as lines:
            connected = time.monotonic()
            connection.settimeout(FOREIGN_SECONDS)
            greeting = _line(lines)
            if greeting == GREETING:
                connection.settimeout(2 * seconds)  # process 0 waits for at most `seconds`
                with contextlib.suppress(OSError):  # process 0 has ended, or has sent an error before
                    connection.sendall(json.dumps({"count": count, "index": index}).encode() + b"\n")
                return _reply(lines, coordinator)
        if greeting != b"":  # a proxy in front of process 0 can close connections until process 0 listens
            foreign = min(foreign, connected)
        if time.monotonic() >= min(foreign + FOREIGN_SECONDS, start + seconds):
            raise ConfigError(_not_process_0(coordinator, "another program answers"))
        time.sleep(0.2)


def _reply(lines: BinaryIO, coordinator: str) -> str | None:
    """Return the error of process 0, or None if all processes have started."""
    try:
        reply = json.loads(_line(lines) or b"")
    except ValueError:
        reason = "it ended before all processes had started"
        raise ConfigError(_not_process_0(coordinator, reason)) from None
    error = reply.get("error")
    return None if error is None else str(error)


def _line(lines: BinaryIO) -> bytes | None:
    """Return the next line: b"" if the connection is closed or lost, None if there is no line before the timeout."""
    try:
        return lines.readline(MAX_LINE)
    except TimeoutError:
        return None
    except OSError:
        return b""


def _connect(coordinator: str, start: float, seconds: float) -> socket.socket:
    """Connect to process 0 as soon as it listens, until `seconds` after `start` on the monotonic clock."""
    host, _, port = coordinator.rpartition(":")
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5)
        except OSError as error:
            if time.monotonic() > start + seconds:
                reason = f"no answer within {seconds:g} s: {error.strerror or error}"
                raise ConfigError(_not_process_0(coordinator, reason)) from None
            time.sleep(0.2)


def _not_process_0(coordinator: str, reason: str) -> str:
    return f"coordinator is {coordinator!r}; allowed: the address of process 0 ({reason})"
