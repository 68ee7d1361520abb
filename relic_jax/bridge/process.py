"""The learner's side of ONE worker: its process, control socket and shared memory. `member` decides what is sent."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relic_jax.bridge import protocol
from relic_jax.bridge.protocol import Channel, Spec
from relic_jax.bridge.worker import ACTIVITY, SetupError

LAUNCH = Path(__file__).resolve().parent / "launch"
SCRUBBED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "LD_PRELOAD")
"""Environment variables that lead another interpreter to the libraries of this one."""
LOG_LIMIT = 1 << 24  # bytes; limit of a worker's stored output, since native code can print without end
LOG_END = 1 << 20  # bytes at the end of the output that are searched for the activity of a crashed worker

UNSUPPORTED = f"environments in worker processes need Linux or macOS; this is {platform.system() or sys.platform}"


def supported() -> bool:
    """Return whether workers can run here. They inherit descriptors, share memory by them, and form process groups."""
    return sys.platform in ("linux", "darwin")


def worker_environment(index: int, paths: Sequence[str], extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of worker `index`.

    Args:
        index: Index of the worker.
        paths: Folders with the user's modules.
        extra: Variables to set.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in SCRUBBED}
    # Without LP_NUM_THREADS, Mesa's software renderer starts one thread per core in every worker.
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"), "1")
    paths_and_index = {"PYTHONPATH": os.pathsep.join([str(LAUNCH), *paths]), "RELIC_WORKER": str(index)}
    return {**inherited, **one_thread, **paths_and_index, **extra}


class Process:
    """A worker process. It can be started again after `kill`; the shared memory keeps its contents.

    Attributes:
        index: Index of the worker.
        buffers: The arrays of `protocol.fields` for each buffer, available after `map`.
    """

    def __init__(self, index: int) -> None:
        self.index, self.close_requested = index, False
        self.buffers: list[dict[str, np.ndarray]] = []
        self._popen: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._lifeline = -1
        self._log: Any = None
        self._memory = _anonymous_memory()

    @property
    def channel(self) -> Channel:
        """The control channel of a running process."""
        if self._channel is None:
            raise OSError(f"worker {self.index} is not running")
        return self._channel

    @property
    def pid(self) -> int | None:
        """The process id; None if it does not run."""
        return None if self._popen is None else self._popen.pid

    def start(self, python: str, paths: Sequence[str], extra: Mapping[str, str], send_timeout: float) -> None:
        """Start the process, which waits for hello.

        Args:
            python: The interpreter.
            paths: Folders with the user's modules.
            extra: Environment variables to set.
            send_timeout: Seconds after which sending a message fails.

        Raises:
            OSError: There is no such interpreter.
        """
        ours, theirs = socket.socketpair()
        lifeline_read, lifeline_write = os.pipe()
        descriptors = {"control": theirs.fileno(), "memory": self._memory, "lifeline": lifeline_read}
        self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (its last line explains a crash)
        try:
            self._popen = subprocess.Popen(
                [python, "-m", "relic_jax_worker", json.dumps(descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=tuple(descriptors.values()),
                env=worker_environment(self.index, paths, extra),
                start_new_session=True,  # Ctrl-C on the terminal reaches the learner only
            )
        except BaseException:
            ours.close()
            os.close(lifeline_write)
            raise
        finally:
            theirs.close()
            os.close(lifeline_read)
        ours.settimeout(send_timeout)
        self._lifeline, self._channel = lifeline_write, Channel(ours)

    def send_hello(self, entry: str, config: Mapping[str, Any], environments: int, lanes: int) -> None:
        """Send the first message. Raises OSError if the worker is gone."""
        self.channel.send(hello(entry, config, environments, lanes))

    def map(self, spec: Spec, environments: int) -> None:
        """Set the size of the memory (once) and let the worker map it. Raises OSError if the worker is gone."""
        size, _ = protocol.layout(spec, environments)
        if not self.buffers:
            os.ftruncate(self._memory, size)
            self.buffers = protocol.views(mmap.mmap(self._memory, size), spec, environments)
        self.channel.send({"op": "map", "bytes": size})

    def describe_end(self) -> str:
        """Return how the process ended, after waiting for it for half a second, and the last line that it printed.

        If the process had named an activity, such as loading a scene, and ended during it, the activity is included.
        """
        if self._popen is None:
            return "not running"
        ended = _ending(self._popen, time.monotonic() + 0.5)
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(end - LOG_END, 0))
        activity, line = last_words(self._log.read().decode(errors="replace"))
        return "; ".join(part for part in (ended + activity, line) if part)

    def trim_log(self) -> None:
        """Discard the stored output of the process if it is longer than LOG_LIMIT."""
        if self._log is not None and os.fstat(self._log.fileno()).st_size > LOG_LIMIT:
            os.ftruncate(self._log.fileno(), 0)

    def request_close(self) -> None:
        """Ask the process to end."""
        with contextlib.suppress(OSError):
            self.channel.send({"op": "close"})
            self.close_requested = True

    def kill(self, grace: float = 0.0) -> None:
        """End the process and its children, after up to `grace` seconds to end itself. Further calls do nothing."""
        if self._popen is not None:
            if grace > 0:
                _ending(self._popen, time.monotonic() + grace)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)  # not reaped yet, so the id still refers to it
            self._popen.wait()
        for close in (self._channel and self._channel.socket.close, self._log and self._log.close):
            if close:
                close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
        self._popen = self._channel = self._log = None
        self._lifeline = -1

    def close(self, grace: float = 0.0) -> None:
        """End the process and release the memory, which is freed with the last array in it."""
        self.kill(grace)
        self.buffers = []
        if self._memory >= 0:
            os.close(self._memory)
        self._memory = -1


def hello(entry: str, config: Mapping[str, Any], environments: int, lanes: int) -> dict[str, Any]:
    """Return the first message of a conversation."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    sizes = {"environments": environments, "lanes": lanes}
    message = {"op": "hello", "protocol": protocol.PROTOCOL, "versions": versions, "entry": entry}
    return {**message, **sizes, "config": dict(config)}


def call(
    python: str, entry: str, arguments: Mapping[str, Any], progress: Callable[[str], None] = lambda text: None
) -> Any:
    """Return the result of `module:function(**arguments)` in another interpreter.

    Args:
        python: The interpreter.
        entry: `module:function`.
        arguments: JSON values.
        progress: Called with what the function does when it names it with `worker.activity`.

    Returns:
        A JSON value.

    Raises:
        SetupError: The function raised it, or the interpreter cannot run it.
    """
    if not supported():
        raise SetupError(UNSUPPORTED)
    text_file: Any = functools.partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with text_file() as file, text_file() as out:
        message = {"entry": entry, "arguments": dict(arguments), "answer": file.fileno()}
        command = [python, "-m", "relic_jax_worker", json.dumps(message)]
        environment = worker_environment(0, (), {})
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=environment,
                encoding="utf-8", errors="replace", pass_fds=(file.fileno(),),
            )  # fmt: skip
        except OSError as error:
            raise SetupError(f"python is '{python}'; allowed: a Python interpreter ({error.strerror})") from None
        errors = _errors(process, progress)
        file.seek(0)
        out.seek(0)
        text, printed = file.read(), out.read()
    if not text:
        activity, line = last_words(f"{printed}\n{errors}")
        code = process.returncode
        ended = f"ended with {code}" if code >= 0 else f"was killed by signal {-code} ({signal.strsignal(-code)})"
        raise SetupError(f"{python} {ended}{activity}; {line or 'it printed nothing'}")
    reply = json.loads(text)
    if "error" in reply:
        raise SetupError(reply["error"])
    return reply["result"]


def _errors(process: subprocess.Popen[str], progress: Callable[[str], None]) -> str:
    """Return what a process prints to stderr until it ends, and call `progress` with each activity that it names."""
    lines: list[str] = []
    with process:
        try:
            for line in process.stderr or ():
                lines.append(line)
                if line.startswith(ACTIVITY) and (activity := line[len(ACTIVITY) :].strip()):
                    progress(activity)
            process.wait()
        except BaseException:
            process.kill()
            raise
    return "".join(lines)


def last_words(output: str) -> tuple[str, str]:
    """Return the activity during which a worker ended, as " while …" or "", and the last line of its other output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    activities = [line[len(ACTIVITY) :] for line in lines if line.startswith(ACTIVITY.strip())]
    others = [line for line in lines if not line.startswith(ACTIVITY.strip())]
    activity = f" while {activities[-1]}" if activities and activities[-1] else ""
    return activity, others[-1][:300] if others else ""


def _ending(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Return how a child ended, or "" if it still runs at `deadline`."""
    while (status := _status(process)) is None:
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.01)
    return f"exit status {status}" if status >= 0 else f"killed by signal {-status} ({signal.strsignal(-status)})"


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit status as `Popen.poll` does, but without reaping the child (on macOS: from Python 3.13 on).

    The id of a child that is not reaped is not reused, so its process group can still be signaled.
    """
    if not hasattr(os, "waitid") or process.returncode is not None:
        return process.poll()
    status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def _anonymous_memory() -> int:
    """Return a descriptor of memory without a name, which is freed with the last process that holds it."""
    if sys.platform == "linux":
        return os.memfd_create("relic-jax-bridge")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
