"""The command line in a separate process without the modules and functions that Windows and macOS lack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relic_jax.bridge import process
from relic_jax.bridge.process import Process

ROOT = Path(__file__).parents[1]
PRESENT_ON_WINDOWS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
WINDOWS = """
import multiprocessing, os, signal, sys
# the code of others is as it is here
from orbax.checkpoint import v1
import flax.struct, jax, matplotlib.font_manager, numpy, optax, PIL.Image, tyro

hidden = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "curses", "syslog", "crypt"}
sys.modules.update(dict.fromkeys(hidden))
for name in [name for name in dir(signal) if name.startswith("SIG") and name[3].isalpha()]:
    if name not in PRESENT:
        delattr(signal, name)
for name in UNIX:
    if hasattr(os, name):
        delattr(os, name)
real_open = os.open
def open_file(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied")
    return real_open(path, *arguments, **options)
os.open = open_file
sys.platform = "win32"
from relic_jax.experiments.cli import main
sys.argv = ["relic-jax", *sys.argv[1:]]
main()
"""
UNIX = """
fork forkpty killpg getpgrp getpgid setsid setpgid getuid geteuid
getgid getegid waitid memfd_create O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_ASYNC O_CLOEXEC
fchmod fchown chown lchown sysconf sched_getaffinity mkfifo statvfs getgroups
P_PID WEXITED WNOWAIT
""".split()  # noqa: SIM905
TINY = ["--total-steps=64", "--trial.environments=2", "--trial.steps=32", "--trial.updates=1", "--eval.episodes=1"]
TINY += ["--eval.tasks=2", "--policy.transformer.layers=1", "--ppo.minibatches=1", "--ppo.accumulate=1"]


def on_windows(*arguments):
    code = WINDOWS.replace("PRESENT", repr(PRESENT_ON_WINDOWS)).replace("UNIX", repr(UNIX))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    nothing = {**os.environ, "PATH": str(ROOT / "nowhere")}  # Python's function to end a process is also hidden
    return subprocess.run(command, cwd=ROOT, env=nothing, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_command_line_trains_without_what_windows_lacks(tmp_path):
    """Regression: the command line did not start, because it imported fcntl."""
    done = on_windows("train", "darkroom-smoke", *TINY, "--runs", tmp_path, "--name", "run")
    assert (done.returncode, done.stderr) == (0, "")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "curve.json", "curve.png", "trial.gif", "checkpoints"} <= names
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") == 1


def test_worker_processes_are_refused_in_a_line():
    done = on_windows("envs", "gym:CartPole-v1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "worker processes need Linux or macOS" in done.stderr


@pytest.mark.slow
def test_text_files_are_utf8_and_any_locale_will_do(tmp_path):
    """Python warns if a file is opened with the locale's encoding. Output that it cannot encode is escaped."""
    command = [sys.executable, "-X", "warn_default_encoding"]
    command += ["-m", "relic_jax.experiments.cli", "evaluate", "--pretrained=darkroom-dpt", "--limit=1", "--episodes=2"]
    locale = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    options = {"cwd": tmp_path, "env": {**os.environ, **locale}, "capture_output": True, "timeout": 300}
    done = subprocess.run(command, **options, encoding="ascii", check=False)
    ours = [line for line in done.stderr.splitlines() if line.startswith(str(ROOT))]
    assert (done.returncode, ours) == (0, [])
    assert "episodes 2\\u20132 return" in done.stdout and len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(not process.supported(), reason="no workers here")
@pytest.mark.parametrize("how", ["exit", "signal"])
def test_how_a_worker_ended_is_known_without_waitid(monkeypatch, how):
    """Python has no os.waitid on macOS before 3.13."""
    monkeypatch.delattr("os.waitid", raising=False)
    code = "import sys; sys.exit(3)" if how == "exit" else "import os; os.kill(os.getpid(), 9)"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        assert (
            process._ending(child, float("inf"))
            == {"exit": "exit status 3", "signal": "killed by signal 9 (Killed)"}[how]
        )


@pytest.mark.skipif(not process.supported(), reason="no workers here")
def test_a_worker_starts_and_ends_as_on_macos(monkeypatch):
    """Shared memory is a temporary file, and there is no signal at the parent's death and no waitid."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr("os.waitid", raising=False)
    monkeypatch.delattr("os.memfd_create", raising=False)
    worker = Process(0)
    worker.start(sys.executable, (), {}, 30.0)
    worker.send_hello("relic_jax.experiments.faults.corridor:Corridor", {}, 1, 1)
    assert worker.channel.receive()["op"] in ("hello", "error")
    worker.request_close()
    worker.close(grace=5.0)
    assert worker.pid is None
