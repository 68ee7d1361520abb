"""Processes find each other, or end within seconds. Threads stand in for processes."""

import concurrent.futures
import contextlib
import json
import os
import socket
import threading
import time

import jax
import pytest

from relic_jax import processes, rendezvous
from relic_jax.config import ConfigError
from relic_jax.errors import SharedError


@pytest.fixture
def address():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{trial.getsockname()[1]}"


def meet(address, *members, seconds=20.0):
    """Return the errors, or None, of processes (count, index, seconds before its start) that meet."""
    host, _, port = address.rpartition(":")

    def one(count, index, delay=0.0):
        time.sleep(delay)
        rendezvous.meet(address, count, index, seconds)
        if index == 0:  # JAX's service would listen from now on
            with socket.create_server((host, int(port))) as server:
                server.settimeout(seconds)
                for _ in range(count - 1):
                    server.accept()[0].close()

    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return [future.exception() for future in [pool.submit(one, *member) for member in members]]


@contextlib.contextmanager
def other_program(address, answer):
    """Listen at an address as another program, and send `answer`, or close the connection if it is None."""
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))) as server:

        def run():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    if answer is None:
                        connection.close()
                        continue
                    connections.append(connection)
                    connection.sendall(answer)

        connections = []
        threading.Thread(target=run, daemon=True).start()
        yield
        for connection in connections:
            connection.close()


def test_processes_start_in_any_order(address):
    assert meet(address, (3, 2), (3, 0, 0.3), (3, 1, 0.5)) == [None, None, None]
    assert meet(address, (1, 0)) == [None]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([(3, 0), (3, 2)], "the number of processes that start within 1 s (missing: process 1)"),
        ([(22, 0), (22, 1)], "19, 20, 21)"),
        ([(1000, 0), (1000, 1)], "19, 20, 21, … and 978 more)"),
        ([(3, 0), (3, 1), (3, 1)], "process-id is 1 in two processes; allowed: a different number in each"),
        ([(3, 0), (2, 1)], "num-processes is 2 on process 1; allowed: 3, as on process 0"),
    ],
)
def test_process_0_reports_the_error_and_all_end(address, members, message):
    first, *others = meet(address, *members, seconds=1.0)
    assert type(first) is ConfigError and message in str(first)
    assert any(type(other) is SharedError and str(other) == str(first) for other in others)
    assert all(isinstance(other, ConfigError) for other in others)


@pytest.mark.parametrize("answer", [None, b"", b"SSH-2.0-OpenSSH\r\n", b"\x00\x00\x12\x04\x00"])
def test_a_port_of_another_program_is_an_error_in_every_process(address, answer, monkeypatch):
    """A program that closes connections, a silent one, an SSH server, and the JAX service of another run."""
    monkeypatch.setattr(rendezvous, "FOREIGN_SECONDS", 0.5)
    monkeypatch.setattr(processes, "CONNECT_SECONDS", 1)
    expected = ["a free port (it is in use)", "the address of process 0 (another program answers)"]
    with other_program(address, answer):
        for index, allowed in enumerate(expected):
            start = time.monotonic()
            with pytest.raises(ConfigError) as error:
                processes.join(address, 2, index)
            assert str(error.value) == f"coordinator is '{address}'; allowed: {allowed}"
            assert time.monotonic() - start < 10


def test_an_error_of_process_0_can_arrive_with_the_greeting(address):
    answer = rendezvous.GREETING + b'{"error": "num-processes is 3"}\n'
    with other_program(address, answer), pytest.raises(SharedError, match=r"^num-processes is 3$"):
        rendezvous.meet(address, 2, 1, 5.0)


def test_process_0_that_does_not_start_or_ends_early(address):
    with pytest.raises(ConfigError, match=r"allowed: the address of process 0 \(no answer within 0.1 s: "):
        rendezvous.meet(address, 2, 1, 0.1)
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))) as server:

        def run():
            connection, _ = server.accept()
            connection.sendall(rendezvous.GREETING)
            assert json.loads(connection.recv(100)) == {"count": 2, "index": 1}
            connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        with pytest.raises(ConfigError, match=r"\(it ended before all processes had started\)$"):
            rendezvous.meet(address, 2, 1, 20.0)
        thread.join()


def test_connections_of_other_programs_do_not_disturb_process_0(address):
    host, _, port = address.rpartition(":")

    def disturb():
        rendezvous._connect(address, time.monotonic(), 5).close()
        for line in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"x" * 2000):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(line)
                time.sleep(0.05)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert meet(address, (2, 0), (2, 1, 1.0)) == [None, None]
    thread.join()


def test_processes_of_a_slurm_job_meet_before_jax_connects(address, monkeypatch):
    job = {"JOB_ID": "7", "STEP_NODELIST": "127.0.0.1,b", "NTASKS": "4", "PROCID": "3", "LOCALID": "1"}
    for name in [name for name in os.environ if name.startswith(("SLURM", "JAX_COORD", "JAX_LOCAL"))]:
        monkeypatch.delenv(name)
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", address.rpartition(":")[2])
    calls = []
    monkeypatch.setattr(rendezvous, "meet", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: calls.append(arguments))
    processes.join()
    assert calls == [(address, 4, 3, processes.CONNECT_SECONDS), (address, 4, 3, [1])]
