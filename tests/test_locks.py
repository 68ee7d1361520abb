"""The lock of a run folder: its owner, stale locks, and competing processes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from relic_jax import locks
from relic_jax.config import ConfigError
from relic_jax.locks import LockedError, run_lock

HOLD = "import sys, time; from pathlib import Path; from relic_jax.locks import run_lock\n"
HOLD += "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def own_lock(folder, **changes):
    """Write a lock of this process with changes to its owner."""
    with run_lock(folder):
        owner = json.loads((folder / "lock").read_text())
    (folder / "lock").write_text(json.dumps({**owner, **changes}))


def test_it_is_gone_afterwards_and_can_be_taken_twice(tmp_path):
    with run_lock(tmp_path):
        with run_lock(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == ["lock"]
        assert (tmp_path / "lock").is_file()
    assert not list(tmp_path.iterdir())


def test_another_process_is_refused_and_named(tmp_path):
    process = holder(tmp_path)
    with (
        pytest.raises(ConfigError, match=rf"resume is .*process {process.pid} on .* since ") as error,
        run_lock(tmp_path, "resume"),
    ):
        pass
    assert "\n" not in str(error.value)
    process.communicate("")
    with run_lock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_lock_of_a_killed_process_is_stale(tmp_path):
    process = holder(tmp_path)
    process.kill()
    deadline = time.monotonic() + 10
    while locks._state(process.pid) not in ("Z", None) and time.monotonic() < deadline:
        time.sleep(0.01)
    with run_lock(tmp_path):  # the process is a zombie, because it has not been waited for
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    process.communicate()


def test_another_thread_is_refused(tmp_path):
    found = []

    def other():
        try:
            with run_lock(tmp_path):
                found.append("held")
        except LockedError as error:
            found.append(str(error))

    with run_lock(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "thread" in found[0]


STALE = {
    "a number that is another process's now": {"started": 1},
    "an unused number": {"pid": 2**22 + 1},
    "before the machine was started anew": {"boot": "another"},
}
UNSEEN = {"another host": {"host": "elsewhere"}, "another container": {"processes": "pid:[1]"}}


@on_linux
@pytest.mark.parametrize("case", STALE)
def test_owners_that_are_gone(tmp_path, case):
    own_lock(tmp_path, **STALE[case])
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@on_linux
@pytest.mark.parametrize("case", UNSEEN)
def test_owners_that_cannot_be_seen_from_here(tmp_path, case):
    own_lock(tmp_path, **UNSEEN[case])
    with pytest.raises(LockedError), run_lock(tmp_path):
        pass
    past = time.time() - 2 * locks.STALE_SECONDS
    os.utime(tmp_path / "lock", (past, past))
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"\xff\0", b"5", b"{}", b'{"pid": "x"}'])
def test_a_lock_that_cannot_be_read_is_one_until_it_is_old(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(LockedError), run_lock(tmp_path):
        pass
    os.utime(tmp_path / "lock", (1, 1))
    with run_lock(tmp_path):
        pass


def test_the_owner_renews_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_SECONDS", 0.01)
    with run_lock(tmp_path):
        os.utime(tmp_path / "lock", (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_mtime > 2


@pytest.mark.slow
@pytest.mark.parametrize(("left", "links"), [("nothing", False), ("a stale lock", True)])
def test_one_of_many_at_the_same_moment_gets_it(tmp_path, left, links):
    if left == "a stale lock":
        own_lock(tmp_path, pid=2**22 + 1)
    code = "import os, sys, time; from pathlib import Path; from relic_jax.locks import run_lock\n"
    code += "" if links else "def fail(*_): raise OSError(95, 'not supported')\nos.link = fail\n"
    code += "print('ready', flush=True); sys.stdin.readline()\n"
    code += "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = []
    while len(found) < len(running) - 1:
        found = [process for process in running if process.poll() is not None]
        time.sleep(0.01)
    (winner,) = set(running) - set(found)
    assert winner.communicate("", timeout=60)[0] == "held\n"
    for process in found:
        assert "LockedError" in process.communicate()[1]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError), run_lock(tmp_path / "missing"):
        pass
