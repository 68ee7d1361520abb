"""Runs in separate processes that are killed, run out of disk space, or share a folder."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax import checkpoint
from relic_jax.envs.registry import make
from relic_jax.rl.train import prepare, restore

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    *("--trial.environments=8", "--trial.steps=250", "--trial.updates=2", "--chunk=segment"),
    *("--checkpoint-minutes=0.00001", "--eval.episodes=1"),
)
"""Options of a run of `darkroom-smoke` that writes a checkpoint after every update of 1,000 steps."""
Process = subprocess.Popen[str]
_LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
from relic_jax.experiments.cli import main
main()
"""


def start(*arguments: Any, largest_file: int | None = None) -> Process:
    """Start `relic-jax train` with these arguments.

    Args:
        *arguments: Arguments of the command.
        largest_file: Largest size of a file in bytes. Writing more fails, as on a full disk.
    """
    module = ["-m", "relic_jax.experiments.cli"] if largest_file is None else ["-c", _LIMITED.format(largest_file)]
    command = [sys.executable, *module, "train", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], bool], process: Process, seconds: float = 120.0) -> None:
    """Wait for an effect of a process. Raises AssertionError if the process ends first or takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.001)


def end(process: Process, number: int, code: int) -> tuple[str, str]:
    """Send a signal and wait. Returns (stdout, stderr). Raises AssertionError on another exit code."""
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def finish(process: Process) -> tuple[int, str]:
    """Wait for the end of a process. Returns (exit code, stderr)."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def logged(folder: Path) -> int:
    """Return the number of lines in a run's metrics."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def arrays(tree: Any) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Return every leaf as (path, dtype, shape, bytes). Equal lists are equal bit for bit."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if typed else leaf)
        found.append((jax.tree_util.keystr(path), str(leaf.dtype), array.shape, array.tobytes()))
    return found


def newest_arrays(folder: Path) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Return every leaf of a run's newest checkpoint."""
    config = checkpoint.load_meta(checkpoint.find(folder))[0]
    setup = prepare(replace(config, devices=1), make(config.env))
    return arrays(restore(setup, folder / "checkpoints")[0])


def differences(whole: Path, other: Path) -> list[str]:
    """Return the differences between two runs that should be equal bit for bit."""
    found = [
        f"{name} differs"
        for name in ("metrics.jsonl", "curve.csv")
        if (whole / name).read_bytes() != (other / name).read_bytes()
    ]
    pairs = zip(newest_arrays(whole), newest_arrays(other), strict=True)
    return found + [f"state leaf {a[0]} differs" for a, b in pairs if a != b]


def run_whole(runs: Path, updates: int) -> Path:
    """Train a run without faults. Returns its folder."""
    options = (f"--total-steps={updates * 1000}", *OPTIONS)
    code, err = finish(start("darkroom-smoke", *options, "--runs", runs, "--name", "whole"))
    assert (code, err) == (0, ""), err
    return runs / "whole"


def killed_runs(whole: Path, count: int, writing: int, seed: int = 0) -> list[str]:
    """Kill a run `count` times, `writing` of them while it writes a checkpoint, and resume it each time.

    Returns the differences to `whole`, the same run without kills.
    """
    rng, cut, total = random.Random(seed), whole.parent / f"cut-{count}", logged(whole)
    options = (f"--total-steps={total * 1000}", *OPTIONS)
    process = start("darkroom-smoke", *options, "--runs", whole.parent, "--name", cut.name)
    for index in range(count):
        here = logged(cut)
        wait_until(lambda here=here: logged(cut) > here, process)  # type: ignore[misc]
        if index < writing:
            wait_until(lambda: any((cut / "checkpoints").glob("*.tmp")), process)
        else:
            time.sleep(rng.uniform(0, 0.1))
        end(process, signal.SIGKILL, -signal.SIGKILL)
        process = start("--resume", cut)
    code, err = finish(process)
    return [f"exit code {code}: {err}"] if (code, err) != (0, "") else differences(whole, cut)


def full_disk(whole: Path, largest_file: int) -> list[str]:
    """Resume a run with a limit on the size of files, then without. Returns the faults."""
    name, total = f"disk-{largest_file}", logged(whole)
    folder, options = whole.parent / name, (f"--total-steps={total * 1000}", *OPTIONS)
    process = start("darkroom-smoke", *options, "--runs", whole.parent, "--name", name)
    wait_until(lambda: len(checkpoint.complete_steps(folder / "checkpoints")) > 1, process)
    end(process, signal.SIGKILL, -signal.SIGKILL)
    before = (folder / "metrics.jsonl").read_bytes()
    code, err = finish(start("--resume", folder, largest_file=largest_file))
    found = [] if code == 2 and err.count("\n") == 1 and "Traceback" not in err else [f"exit code {code}: {err[-400:]}"]
    kept = (folder / "metrics.jsonl").read_bytes()
    if not (kept.startswith(before) or before.startswith(kept)):
        found.append("metrics.jsonl has lost lines")
    code, err = finish(start("--resume", folder))
    return found + ([f"exit code {code}: {err[-400:]}"] if code else differences(whole, folder))


def two_processes(whole: Path) -> list[str]:
    """Start a second process on a run folder, which must be refused and change nothing. Returns the faults."""
    folder, total = whole.parent / "two", logged(whole)
    options = (f"--total-steps={total * 1000}", *OPTIONS)
    first = start("darkroom-smoke", *options, "--runs", whole.parent, "--name", "two")
    wait_until(lambda: logged(folder) > 1, first)
    os.kill(first.pid, signal.SIGSTOP)  # otherwise it could end before the second one starts
    code, err = finish(start("--resume", folder))
    os.kill(first.pid, signal.SIGCONT)
    found = [] if code == 2 and err.count("\n") == 1 else [f"the second process: exit code {code}: {err[-400:]}"]
    code, err = finish(first)
    return found + ([f"the first process: exit code {code}: {err[-400:]}"] if code else differences(whole, folder))
