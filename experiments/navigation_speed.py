"""`python -m experiments.navigation_speed`: steps per second of object navigation, and the times of a step's parts.

    raw            the bare simulator with only an RGB camera: step, copy of the image, geodesic distance
    environment    ExtObjNav on the same moves
    slot           the same in a worker's slot, which checks values and writes shared memory
    1 worker       the same through the bridge, one action at a time, without a policy
    N workers      N processes, N environments

The first three rates and the times of the parts are measured in one process (`benchmark.navigation`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from relic_jax.bridge.pool import Pool, PoolConfig
from relic_jax.bridge.process import call
from relic_jax.envs.habitat import dataset, env
from relic_jax.experiments.benchmark.navigation import moves
from relic_jax.files import write_atomically
from relic_jax.provenance import own_commit

ENTRY = "relic_jax.envs.habitat.worker:make"
PROFILE = "relic_jax.experiments.benchmark.navigation:profile"


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure steps per second in the first training task of an episode dataset."""

    dataset: Path | None = None
    """Episode dataset, from relic-jax habitat-dataset. Default: a procedural house of the software simulator."""
    habitat_python: str = sys.executable
    """The workers' interpreter."""
    objects: str = ""
    """Folder with the object templates of habitat-sim."""
    image_size: int = 128
    """Side of the camera's image, in pixels."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of worker processes."""
    steps: int = 2000
    """Steps per measurement."""
    out: Path | None = None
    """Write the numbers to this JSON file."""


def main() -> None:
    """Print the rates and the parts of a step."""
    command = tyro.cli(Command, prog="python -m experiments.navigation_speed")
    data = env.soft_dataset() if command.dataset is None else dataset.read(str(command.dataset))
    options = {
        "backend": data["backend"],
        "scene_dataset": data["scene_dataset"],
        "objects": command.objects,
        "size": command.image_size,
        "horizon": 2**31 - 1,
        "categories": data["categories"],
    }
    task = data["train"][0]
    numbers: dict[str, float] = {}
    for raw in (True, False):
        arguments = {"options": options, "task": task, "steps": command.steps, "raw": raw}
        numbers.update(call(command.habitat_python, PROFILE, arguments))
    for count in command.workers:
        numbers[f"{count} workers"] = pool_rate(command.habitat_python, options, task, count, command.steps)
    for name, value in numbers.items():
        share = "" if name.startswith("µs") else f"{value / numbers['raw']:8.2f} of raw"
        print(f"{name:40} {value:8.0f}{share}")
    if command.out:
        words = " ".join(["python -m experiments.navigation_speed", *sys.argv[1:]])
        document = {"command": words, "commit": own_commit(), "scene": task["scene"], "numbers": numbers}
        write_atomically(command.out, json.dumps(document, indent=1) + "\n")


def pool_rate(python: str, options: dict[str, Any], task: dict[str, Any], workers: int, steps: int) -> float:
    """Return the environment steps per second of a pool with one environment per worker and no policy."""
    config = PoolConfig(ENTRY, options, workers, 1, 2 if workers % 2 == 0 else 1, python=python)
    with Pool(config) as pool:
        pool.reset([task] * workers, list(range(workers)))
        groups = range(config.groups)
        actions = np.array([moves(steps, seed) for seed in range(workers)], np.int32).T
        start = time.perf_counter()
        for index in range(len(actions) + 1):
            for group in groups:
                numbers = pool.group(group)
                if index:
                    pool.receive(group)
                if index < len(actions):
                    pool.send(actions[index, numbers], group)
        return workers * len(actions) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
