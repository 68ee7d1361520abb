"""Locks of run folders: only one process at a time works on a run.

The file `lock` in the folder names its owner: the host, the process and its start time. It is created with a hard link,
which is atomic on local and on network file systems. A stale lock is taken over. A lock is stale if its owner's process
has ended, if the process id belongs to a process that started later, or if the machine was rebooted. The owner also
renews the file's modification time, which decides about processes on another host or in another container.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relic_jax.errors import LockedError as LockedError

NAME = "lock"
RENEW_SECONDS = 20.0
STALE_SECONDS = 180.0

_held: dict[Path, tuple[int, str]] = {}
"""Thread and token of each folder that this process has locked."""


@contextmanager
def run_lock(folder: Path, field: str = "folder") -> Iterator[None]:
    """Hold the lock of an existing run folder. The lock is reentrant within a thread.

    Args:
        folder: The run folder.
        field: Name of the user's option, for the message.

    Raises:
        LockedError: If another process or thread holds the lock.
        OSError: If the lock cannot be written.
    """
    key = folder.resolve()
    if key in _held:
        if _held[key][0] != threading.get_ident():
            raise LockedError(f"{field} is '{folder}'; allowed: a run that no other thread of this process works on")
        yield
        return
    token = _acquire(folder, field)
    _held[key] = threading.get_ident(), token
    ended = threading.Event()
    threading.Thread(target=_renew, args=(folder / NAME, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        del _held[key]
        if _read(folder / NAME).get("token") == token:
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()


def is_lock_file(name: str) -> bool:
    """Return whether a file of a run folder is a lock, or a temporary file of one that a killed process left."""
    return name == NAME or name.startswith(f".{NAME}-")


def _renew(file: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(file)


def _acquire(folder: Path, field: str) -> str:
    """Create the lock and return its token, which is unique."""
    token = uuid.uuid4().hex
    own = folder / f".{NAME}-{token}"
    owner = {"token": token, "pid": os.getpid(), "started": process_start(os.getpid()), **_machine()}
    owner |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": " ".join(sys.argv)[:200]}
    try:
        with own.open("x", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(owner) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with _one_at_a_time(folder):
            for _ in range(10):
                if _create(own, folder / NAME):
                    return token
                found = _read(folder / NAME)
                if not _is_stale(folder / NAME, found, own):
                    raise LockedError(_message(folder, field, found))
                _remove(folder / NAME, found.get("token"), own.with_name(own.name + "-old"))
        raise LockedError(_message(folder, field, {}))
    finally:
        with contextlib.suppress(OSError):
            own.unlink()


def _create(own: Path, lock: Path) -> bool:
    """Link our file to the lock's name. Return False if the lock exists."""
    try:
        os.link(own, lock)
        return True
    except FileExistsError:
        return False
    except OSError:  # no hard links on this file system
        try:
            with lock.open("x", encoding="utf-8", newline="\n") as file:
                file.write(own.read_text(encoding="utf-8"))
            return True
        except FileExistsError:
            return False


def _remove(lock: Path, token: str | None, aside: Path) -> None:
    """Remove a stale lock, unless another process has created a new one since it was read."""
    with contextlib.suppress(OSError):
        os.rename(lock, aside)
        if _read(aside).get("token") != token:
            with contextlib.suppress(OSError):
                os.link(aside, lock)
        aside.unlink()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Serialize the processes of this machine that check a folder's lock, if the system supports it."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(file: Path) -> dict[str, Any]:
    """Return the owner that a lock names, or {} if it cannot be read."""
    try:
        found = json.loads(file.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_stale(lock: Path, owner: dict[str, Any], own: Path) -> bool:
    machine = _machine()
    pid, started = owner.get("pid"), owner.get("started")
    if isinstance(pid, int) and all(owner.get(name) == machine[name] for name in ("host", "machine")):
        if machine["boot"] is not None and owner.get("boot") not in (None, machine["boot"]):
            return True  # the machine was rebooted
        if owner.get("processes") == machine["processes"] and (alive := is_alive(pid)) is not None:
            return not alive or started is None or process_start(pid) not in (None, started)
    try:  # both times come from the file system, so the clocks of the hosts do not matter
        os.utime(own)
        return own.stat().st_mtime - lock.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def _message(folder: Path, field: str, owner: dict[str, Any]) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')} since {owner.get('since', '?')}"
    release = f"if it has ended, remove '{folder / NAME}' or wait {STALE_SECONDS:.0f} s"
    return f"{field} is '{folder}'; allowed: a run that no other process works on ({who}; {release})"


def _machine() -> dict[str, str | None]:
    """Return what identifies this machine and its process ids. Processes with equal values can see each other."""
    try:
        processes: str | None = os.readlink("/proc/self/ns/pid")  # containers have separate process ids
    except OSError:
        processes = None
    identity = _line("/etc/machine-id"), _line("/proc/sys/kernel/random/boot_id")
    return {"host": platform.node(), "machine": identity[0], "boot": identity[1], "processes": processes}


def _line(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def is_alive(pid: int) -> bool | None:
    """Return whether a process of this machine is running. None if the system cannot tell."""
    if sys.platform == "win32":  # os.kill would end the process
        return None
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user
        return True
    return _state(pid) != "Z"  # a zombie has ended


def process_start(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot. None if the system cannot tell."""
    fields = _stat(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _state(pid: int) -> str | None:
    return next(iter(_stat(pid)), None)


def _stat(pid: int) -> list[str]:
    """Return the fields of Linux's /proc/PID/stat after the name, which can contain any characters."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (OSError, UnicodeDecodeError):
        return []
