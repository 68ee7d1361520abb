"""Training runs in separate processes that are interrupted at a time limit, and their speed and returns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relic_jax.metrics import read_lines

FIRST, LATER = 35.0, 86.4
"""Targets of `darkroom-dpt`, see experiments/results/darkroom-dpt/README.md."""
SMALL = (
    *("--total-steps=64", "--trial.environments=2", "--trial.steps=32", "--trial.updates=1"),
    *("--policy.transformer.layers=1", "--ppo.minibatches=1", "--ppo.accumulate=1", "--ppo.epochs=1"),
    *("--eval.episodes=2", "--eval.tasks=2"),
)
"""Options of a run that takes seconds."""
COMMAND = (sys.executable, "-m", "relic_jax.experiments.cli")
GRACE = 12.0
"""Seconds for an interrupted run to save and for this process to report."""


def darkroom(quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Train `darkroom-dpt-gpu` and compare its held-out returns with its targets."""
    preset = "darkroom-smoke" if quick else "darkroom-dpt-gpu"
    with tempfile.TemporaryDirectory() as runs:
        result = trained(Path(runs), "train", preset, quick, seconds)
        curve = Path(runs) / "run" / "curve.json"
        if curve.exists():
            returns = json.loads(curve.read_text(encoding="utf-8"))["return"]["mean"]
            first, later = returns[0], sum(returns[1:]) / max(len(returns) - 1, 1)
            result |= {"first": first, "later": later, "reached": first >= FIRST and later >= LATER}
        yield {"name": f"darkroom/{preset}", **result}


def long_trial(quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Run one trial of `darkroom-64k` in bfloat16 until the time limit."""
    options = () if quick else ("--total-steps=262144", "--policy.transformer.dtype=bfloat16", "--eval.episodes=2")
    with tempfile.TemporaryDirectory() as runs:
        result = trained(Path(runs), "train", "darkroom-smoke" if quick else "darkroom-64k", quick, seconds, *options)
    yield {"name": "64k/darkroom-64k", **result}


def house(quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Train in houses from images for the first minute."""
    yield _first_minute("house-objnav-small-gpu", quick, seconds)


def symbols(quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Train in houses from symbols for the first minute, without pretraining."""
    yield _first_minute("house-symbols-small", quick, seconds, *(() if quick else ("--pretrain.steps=0",)))


def _first_minute(preset: str, quick: bool, seconds: float, *options: str) -> dict[str, Any]:
    """Train a preset until the limit."""
    with tempfile.TemporaryDirectory() as runs:
        result = trained(Path(runs), "train", "darkroom-smoke" if quick else preset, quick, seconds, *options)
    return {"name": f"house/{preset}", **result}


def sweep(quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Train 16 seeds of `darkroom-dpt-gpu` together, for a quarter of its steps."""
    seeds, preset = (2, "darkroom-smoke") if quick else (16, "darkroom-dpt-gpu")
    options = () if quick else ("--total-steps=1280000", "--eval.episodes=5")
    with tempfile.TemporaryDirectory() as runs:
        result = trained(Path(runs), "sweep", preset, quick, seconds, f"--seeds={seeds}", *options)
    yield {"name": f"sweep/{preset}, {seeds} seeds", **result}


def trained(runs: Path, command: str, preset: str, quick: bool, seconds: float, *options: str) -> dict[str, Any]:
    """Run `relic-jax train` or `relic-jax sweep` and interrupt it at the limit.

    Args:
        runs: Folder for the run, `runs/run`.
        command: train or sweep.
        preset: Name of the preset.
        quick: Shorten it to seconds.
        seconds: The limit, of which `GRACE` seconds are kept for saving.
        *options: Options of the command.

    Returns:
        seconds, finished, env_steps (summed over runs), startup_seconds (until the first update), steps_per_second
        after it, and the error message if there is one.
    """
    arguments = [command, preset, "--runs", str(runs), "--name", "run", *options, *(SMALL if quick else ())]
    start = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        _, error = process.communicate(timeout=max(seconds - GRACE, 1.0))
        interrupted = False
    except subprocess.TimeoutExpired:
        interrupted = True
        error = _interrupted(process)
    result = {"command": " ".join(["relic-jax", command, preset, *options]), "seconds": time.monotonic() - start}
    result |= {"finished": process.returncode == 0, "interrupted": interrupted, **speed(runs)}
    return result if process.returncode == 0 or interrupted else result | {"error": error[-500:]}


def _interrupted(process: subprocess.Popen[str]) -> str:
    """Interrupt a run and return what it wrote to stderr. A run that does not end is killed."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE / 2)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[1]


def speed(runs: Path) -> dict[str, Any]:
    """Return env_steps, startup_seconds and steps_per_second of all runs below a folder, summed."""
    total: dict[str, Any] = {"env_steps": 0}
    for file in sorted(runs.rglob("timing.jsonl")):
        if not (lines := read_lines(file)):
            continue
        first, last = lines[0], lines[-1]
        total["env_steps"] += last["env_steps"]
        total["startup_seconds"] = max(total.get("startup_seconds", 0.0), first["seconds"])
        if last["seconds"] > first["seconds"]:
            rate = (last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"])
            total["steps_per_second"] = total.get("steps_per_second", 0.0) + rate
    return total
