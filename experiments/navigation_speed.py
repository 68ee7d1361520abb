"""`python -m experiments.navigation_speed`: steps per second of object navigation, and the time of each part of a step.

    raw                  the bare simulator with only an RGB camera: the fewest calls for the same image and distance
    raw, Simulator.step  the same with the simulator's own `step`, which also simulates physics
    environment          ExtObjNav
    slot                 ExtObjNav in a worker's slot, which checks values and writes shared memory
    bridge 1             one worker, one environment, one action at a time, without a policy
    bridge 2             two workers, stepped together
    bridge 2, halves     two workers, each stepped as soon as it is ready
    AsyncVectorEnv N     gymnasium's, with shared memory and N processes that contain the same environment
    VectorEnv N          habitat-lab's, with N such processes

All cases play the same moves from the same starts, and an error is raised unless they end at the same distance. One
pass over the moves is a round. Every turn measures some rounds of each case. The last two cases, the peers, are
measured if the workers' interpreter can import them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from relic_jax.bridge.pool import Pool, PoolConfig
from relic_jax.bridge.process import call
from relic_jax.envs.habitat import dataset, env
from relic_jax.experiments.benchmark.navigation import DISTANCE, moves
from relic_jax.experiments.benchmark.navigation_peers import PEERS
from relic_jax.experiments.benchmark.navigation_policy import training_times
from relic_jax.files import write_atomically
from relic_jax.provenance import own_commit

WORKER_SIDE = "relic_jax.experiments.benchmark.navigation"
PEER_SIDE = "relic_jax.experiments.benchmark.navigation_peers"
PAUSE = 0.05
"""Seconds of a pause of a slow environment."""
Rounds = list[list[float]]


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
    """Numbers of environments, each in a separate process, of the bridge and of its peers."""
    steps: int = 2000
    """Steps of a round, per environment."""
    rounds: int = 3
    """Rounds of a case in each turn."""
    turns: int = 2
    """Turns, in each of which all cases are measured."""
    policy: int = 0
    """Segments of training to measure, with as many environments as the largest number of workers. 0: none."""
    out: Path | None = None
    """Write the numbers to this JSON file."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """The moves that all cases play, and the interpreter that plays them."""

    python: str
    options: dict[str, Any]
    task: dict[str, Any]
    steps: int
    rounds: int

    def call(self, entry: str, **more: Any) -> Any:
        """Call a function of the workers' interpreter."""
        common = {"options": self.options, "task": self.task, "steps": self.steps, "rounds": self.rounds}
        return call(self.python, entry, {**common, **more})


def main() -> None:
    """Print the rates, the parts of a step, and the comparisons, and write them to a file."""
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
    workload = Workload(command.habitat_python, options, data["train"][0], command.steps, command.rounds)
    peers = {name: call(workload.python, f"{PEER_SIDE}:version", {"peer": name}) for name in PEERS}
    document: dict[str, Any] = {
        "command": " ".join(["python -m experiments.navigation_speed", *sys.argv[1:]]),
        "commit": own_commit(),
        "scene": workload.task["scene"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "peers": peers,
    }
    cases: dict[str, Rounds] = {}
    for turn in range(command.turns):
        for name, rounds in _turn(workload, command.workers, [n for n in peers if "version" in peers[n]], document):
            print(
                f"turn {turn + 1}: {name:24} {statistics.median(rate for rate, _ in rounds):8.0f} steps/s", flush=True
            )
            cases.setdefault(name, []).extend(rounds)
            _check_path(name, rounds, cases["raw"][0][1])
    document["rates"] = {name: [rate for rate, _ in rounds] for name, rounds in cases.items()}
    if command.policy:
        report = functools.partial(print, flush=True)
        document["training"] = training_times(_training(command), command.policy, report)
    medians = {name: statistics.median(rates) for name, rates in document["rates"].items()}
    document["comparisons"] = comparisons(medians, document.get("straggler", {}))
    _print(document)
    if command.out:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(command.out, json.dumps(document, indent=1) + "\n")


def _turn(
    workload: Workload, workers: tuple[int, ...], peers: list[str], document: dict[str, Any]
) -> Iterator[tuple[str, Rounds]]:
    """Measure all cases once, and yield their names and rounds.

    Other measurements are written to `document`, where they replace those of the turn before.
    """
    yield from workload.call(f"{WORKER_SIDE}:simulator").items()
    environment = workload.call(f"{WORKER_SIDE}:environment")
    document["microseconds"] = environment["microseconds"]
    yield from environment["cases"].items()
    for count in workers:
        start = time.perf_counter()
        with Pool(PoolConfig(f"{WORKER_SIDE}:Pausing", workload.options, count, 1, count, workload.python)) as pool:
            pool.reset([workload.task] * count, list(range(count)))
            document.setdefault("seconds_to_start", {})[f"{count}"] = time.perf_counter() - start
            yield f"bridge {count}", [_play_together(pool, workload) for _ in range(workload.rounds)]
            if count > 1:
                yield f"bridge {count}, halves", [_play_ready(pool, workload)[0] for _ in range(workload.rounds)]
                document.setdefault("straggler", {})[f"{count}"] = _straggler(pool, workload)
        for peer in peers:
            yield f"{peer} {count}", workload.call(f"{PEER_SIDE}:measure", peer=peer, environments=count)


def _begin(pool: Pool, workload: Workload, **changes: Any) -> np.ndarray:
    """Reset a pool for a round. Return the actions, int32 [steps, environments]. `changes` apply to the last task."""
    count = pool.config.total
    pool.reset([workload.task] * (count - 1) + [{**workload.task, **changes}], list(range(count)))
    return np.array([moves(workload.steps, seed) for seed in range(count)], np.int32).T


def _play_together(pool: Pool, workload: Workload) -> list[float]:
    """Play a round in which all environments step together. Return its rate and the final distance of the first."""
    actions = _begin(pool, workload)
    start = time.perf_counter()
    for row in actions:
        pool.send(row)
        batch = pool.receive()
    return [actions.size / (time.perf_counter() - start), float(batch.metrics[0, DISTANCE])]


def _play_ready(pool: Pool, workload: Workload, in_turn: bool = False, **changes: Any) -> tuple[list[float], float]:
    """Play a round in which each environment steps as soon as it is ready, or `in_turn`.

    Returns:
        [rate, final distance of the first environment], and the seconds that the first environment took.
    """
    actions = _begin(pool, workload, **changes)
    counts, pending = [0] * pool.config.groups, list(range(pool.config.groups))
    distance = finished = 0.0
    start = time.perf_counter()
    for group in pending:
        pool.send(actions[0, pool.group(group)], group)
    while pending:
        group = pending[0] if in_turn else pool.ready(pending)
        pending.remove(group)
        batch = pool.receive(group)
        counts[group] += 1
        if counts[group] < len(actions):
            pool.send(actions[counts[group], pool.group(group)], group)
            pending.append(group)
        elif group == 0:
            distance, finished = float(batch.metrics[0, DISTANCE]), time.perf_counter() - start
    return [actions.size / (time.perf_counter() - start), distance], finished


def _straggler(pool: Pool, workload: Workload) -> dict[str, float]:
    """Return the milliseconds per step of the first environment while the last one pauses in every 20th step."""
    cases: dict[str, Any] = {"no pauses": {}, "ready": {"pause": PAUSE}, "in turn": {"pause": PAUSE, "in_turn": True}}
    steps = min(workload.steps, 400)
    short = dataclasses.replace(workload, steps=steps)
    return {name: 1000 * _play_ready(pool, short, **changes)[1] / steps for name, changes in cases.items()}


def _check_path(name: str, rounds: Rounds, distance: float) -> None:
    if any(abs(end - distance) > 1e-2 for _, end in rounds):
        raise RuntimeError(f"{name} ended at distances {[end for _, end in rounds]}, raw at {distance}")


def _training(command: Command) -> list[str]:
    """Return the arguments of `relic-jax train` with as many environments as the largest number of workers."""
    count = str(max(command.workers))
    size = ["--env.image-size", str(command.image_size), "--trial.environments", count, "--ppo.minibatches", count]
    host = ["--host.workers", count, "--host.python", command.habitat_python]
    backend = [] if command.dataset is None else ["--env.dataset", str(command.dataset)]
    if command.objects:
        backend += ["--env.backend", "habitat", "--env.objects", command.objects]
    return ["extobjnav-soft", *size, *host, *backend]


def comparisons(rates: dict[str, float], straggler: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return the ratios that have a target: {name, ratio, target, reached}.

    Args:
        rates: Median steps per second by case.
        straggler: Milliseconds per step of the first environment, by number of workers.
    """
    pairs = [("bridge 1", "raw", 0.8), ("bridge 2", "bridge 1", 1.5), ("bridge 2, halves", "bridge 1", 1.5)]
    pairs += [(f"bridge {count}", f"{peer} {count}", 1.5) for peer in PEERS for count in (1, 2)]
    pairs += [("bridge 2, halves", f"{peer} 2", 1.5) for peer in PEERS]
    ratios = [(f"{a} : {b}", rates[a] / rates[b], target) for a, b, target in pairs if a in rates and b in rates]
    ratios += [(f"{n} workers, beside a straggler", x["no pauses"] / x["ready"], 0.8) for n, x in straggler.items()]
    return [{"name": name, "ratio": x, "target": target, "reached": x >= target} for name, x, target in ratios]


def _print(document: dict[str, Any]) -> None:
    medians = {name: statistics.median(rates) for name, rates in document["rates"].items()}
    for name, rate in medians.items():
        print(f"{name:52} {rate:8.0f} steps/s {rate / medians['raw']:6.2f} of raw")
    for name, value in document["microseconds"].items():
        print(f"{name:52} {value:8.0f} µs")
    for name, value in document.get("training", {}).get("milliseconds", {}).items():
        print(f"training: {name:42} {value:8.2f} ms")
    for count, values in document.get("straggler", {}).items():
        print(f"{count} workers, ms per step of the first:", {name: round(value, 2) for name, value in values.items()})
    for item in document["comparisons"]:
        print(
            f"{item['name']:52} {item['ratio']:8.2f} (target {item['target']}{'' if item['reached'] else ', missed'})"
        )
    for name, about in document["peers"].items():
        if "missing" in about:
            print(f"{name} is not measured: {about['missing']}")


if __name__ == "__main__":
    main()
