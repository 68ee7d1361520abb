"""Runs that two processes train, one of which is killed."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from relic_jax import checkpoint
from relic_jax.config import ConfigError
from relic_jax.experiments.faults.processes import OPTIONS, ROOT, Process, differences, logged, wait_until

SMALL = ("--policy.transformer.layers=1", "--ppo.epochs=1")
"""Options of the runs beside `OPTIONS`."""
LONGEST = 60.0
"""Seconds within which a process must end after the other one was killed."""


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def start_two(*arguments: Any) -> list[Process]:
    """Start `relic-jax train` with these arguments in two processes with one device each."""
    several = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
    command = [sys.executable, "-m", "relic_jax.experiments.cli", "train", *map(str, arguments), *several]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(index)], cwd=ROOT, env=environment, **pipes) for index in range(2)]


def finish_two(both: list[Process]) -> list[str]:
    """Wait for two processes, and return a message for each that did not succeed."""
    errors = [process.communicate(timeout=600)[1] for process in both]
    pairs = enumerate(zip(both, errors, strict=True))
    return [f"process {i}: exit code {p.returncode}: {error[-400:]}" for i, (p, error) in pairs if p.returncode]


def killed_processes(runs: Path, kills: int, seed: int = 0) -> tuple[list[str], list[float]]:
    """Kill process 1 and process 0 of a run alternately, and resume the run each time.

    Args:
        runs: Folder for the run, and for the same run without kills.
        kills: Number of kills.
        seed: Random seed of their times.

    Returns:
        A message for each failure, and the seconds after which the other process ended.
    """
    rng, whole, cut = random.Random(seed), runs / "whole-two", runs / "cut-two"
    options = (f"--total-steps={(8 + 4 * kills) * 1000}", *OPTIONS, *SMALL, "--runs", runs, "--name")
    failures = finish_two(start_two("darkroom-smoke", *options, whole.name))
    both, seconds = start_two("darkroom-smoke", *options, cut.name), []
    for index in range(kills):
        before = logged(cut)
        wait_until(lambda before=before: logged(cut) > before, both[0], 600)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.3))
        lost = 1 - index % 2
        messages, after = _kill(both, lost, cut)
        failures += [f"kill {index} of process {lost}: {message}" for message in messages]
        seconds.append(after)
        both = start_two("--resume", cut)
    return failures + finish_two(both) + differences(whole, cut), seconds


def _kill(both: list[Process], lost: int, folder: Path) -> tuple[list[str], float]:
    """Kill a process. Return the failures, and the seconds until the other process ended."""
    other, start = both[1 - lost], time.monotonic()
    both[lost].kill()
    try:
        _, error = other.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        other.kill()
        return [f"the other process runs after {LONGEST:.0f} s"], LONGEST
    seconds = time.monotonic() - start
    both[lost].communicate()
    failures = [] if other.returncode else ["the exit code of the other process is 0"]
    steps = checkpoint.complete_steps(folder / "checkpoints")
    match = re.search(r"last checkpoint: \S+/checkpoints/(\d+); resume with: relic-jax train --resume ", error)
    if match is None and (len(steps) > 1 or "no checkpoint yet" not in error):
        failures.append(f"no checkpoint is named: {error[-400:]}")
    elif match is not None and int(match[1]) not in steps:
        failures.append(f"checkpoint {match[1]} does not exist")
    for step in steps:
        try:
            checkpoint.verify(folder / "checkpoints" / str(step))
        except ConfigError as damage:
            failures.append(str(damage))
    return failures, seconds
