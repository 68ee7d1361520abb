"""Kills worker processes while a run trains."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relic_jax.config import TrainConfig, TrialConfig, WorkerConfig
from relic_jax.environment.host import HostEnvironment
from relic_jax.experiments.faults.corridor import Corridor
from relic_jax.experiments.faults.small import PER_UPDATE, small_config
from relic_jax.metrics import JsonLines, read_lines
from relic_jax.rl.train import Result, prepare, train

HORIZON = 6
TASKS = {"train": [{"goal": goal} for goal in (-3, -2, 2, 3)], "test": [{"goal": goal} for goal in (-4, 4, 1)]}


def corridor(host: WorkerConfig | None = None, **options: Any) -> HostEnvironment:
    """Return a noisy corridor in worker processes."""
    options = {"horizon": HORIZON, **options}
    spec = Corridor(**options).spec
    entry = "relic_jax.experiments.faults.corridor:Corridor"
    return HostEnvironment("corridor", entry, options, spec, TASKS, host=host or WorkerConfig())


def processes_of(parent: int) -> list[int]:
    """Return the running child processes of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


class CallingJsonLines(JsonLines):
    """Calls `at(env_steps)` before a record is logged."""

    def __init__(self, folder: Path, env_steps: int, at: Callable[[int], None]) -> None:
        super().__init__(folder, env_steps)
        self._at = at

    def log(self, record: Any, clock: Any) -> None:
        """See `JsonLines`."""
        self._at(record["env_steps"])
        super().log(record, clock)


def killed_workers(folder: Path, kills: int, config: TrainConfig | None = None) -> list[str]:
    """Train while one worker per update is killed at a random time.

    Only steps that were in progress may be lost, and no process or shared memory may remain.

    Args:
        folder: Run folder to create.
        kills: Number of workers to kill.
        config: Config of the run. Default: a small one.

    Returns:
        A message for each failure.
    """
    total = (kills + 3) * PER_UPDATE
    trial = TrialConfig(environments=4, steps=32, updates=2)
    config = config or small_config(env="corridor", trial=trial)
    config = dataclasses.replace(config, total_steps=total, checkpoint_minutes=60)
    setup = prepare(config, corridor(WorkerConfig(workers=4, max_restarts=2 * kills), milliseconds=1.0))
    memory, before = set(os.listdir("/dev/shm")), set(processes_of(os.getpid()))
    rng = random.Random(0)
    killed: list[int] = []
    timers: list[threading.Timer] = []

    def kill() -> None:
        alive = sorted(set(processes_of(os.getpid())) - before - set(killed))
        killed.append(rng.choice(alive))
        os.kill(killed[-1], signal.SIGKILL)

    def at(env_steps: int) -> None:
        if len(timers) < kills:
            timers.append(threading.Timer(rng.uniform(0, 0.03), kill))
            timers[-1].start()

    folder.mkdir(exist_ok=True)
    result = train(setup, folder, lambda env_steps: CallingJsonLines(folder, env_steps, at), resume=False)
    for timer in timers:
        timer.join()
    found = _failures(result, total, read_lines(folder / "metrics.jsonl"), kills)
    found += [] if len(killed) == kills else [f"{len(killed)} of {kills} workers were killed"]
    found += [f"process {pid} remains" for pid in set(processes_of(os.getpid())) - before]
    return found + [f"/dev/shm/{name} remains" for name in set(os.listdir("/dev/shm")) - memory]


def _failures(result: Result, total: int, records: list[Any], kills: int) -> list[str]:
    found = [] if result.finished and int(result.state.env_steps) >= total else ["the run did not finish"]
    steps = [record["env_steps"] for record in records]
    if steps != list(range(PER_UPDATE, steps[-1] + 1, PER_UPDATE)) or steps[-1] < total:
        found.append(f"updates are missing or repeated: {steps}")
    lost = sum(record["lost_steps"] for record in records)
    return found if 0 < lost <= kills else [*found, f"{lost} steps were lost, with one environment per worker"]
