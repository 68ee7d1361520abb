"""`python -m experiments.navigation_speed`: steps per second of object navigation, and the times of a step's parts.

    raw                  the bare simulator with only an RGB camera: the fewest calls for the same image and distance
    raw, Simulator.step  the same with the simulator's own `step`, which also simulates physics
    environment          ExtObjNav
    slot                 ExtObjNav in a worker's slot, which checks values and writes shared memory
    bridge 1             one worker, one environment, one action at a time, without a policy
    bridge 2             two workers, stepped together; `bridge 2, halves`: each stepped as soon as it is ready
    AsyncVectorEnv N     gymnasium's, with shared memory, and N processes around the same environment
    VectorEnv N          habitat-lab's

All cases play the same moves from the same starts, and end at the same distances, or an error is raised. A round is one
play of the moves. Cases are measured in turns. Peers are measured if the workers' interpreter can import them.
"""

from __future__ import annotations

import dataclasses
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
from relic_jax.experiments.benchmark.navigation_policy import shares
from relic_jax.files import write_atomically
from relic_jax.provenance import own_commit

WORKER_SIDE = "relic_jax.experiments.benchmark.navigation"
PEER_SIDE = "relic_jax.experiments.benchmark.navigation_peers"
PAUSE = 0.05
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
    """Numbers of environments, each in its own process, of the bridge and of its peers."""
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
class Program:
    """What all cases have in common."""

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
    program = Program(command.habitat_python, options, data["train"][0], command.steps, command.rounds)
    peers = {name: call(program.python, f"{PEER_SIDE}:version", {"peer": name}) for name in PEERS}
    document: dict[str, Any] = {
        "command": " ".join(["python -m experiments.navigation_speed", *sys.argv[1:]]),
        "commit": own_commit(),
        "scene": program.task["scene"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "peers": peers,
    }
    cases: dict[str, Rounds] = {}
    for turn in range(command.turns):
        for name, rounds in _turn(program, command.workers, [n for n in peers if "version" in peers[n]], document):
            print(
                f"turn {turn + 1}: {name:24} {statistics.median(rate for rate, _ in rounds):8.0f} steps/s", flush=True
            )
            cases.setdefault(name, []).extend(rounds)
            _check_path(name, rounds, cases["raw"][0][1])
    document["rates"] = {name: [rate for rate, _ in rounds] for name, rounds in cases.items()}
    if command.policy:
        document["training"] = shares(_training(command), command.policy, lambda text: print(text, flush=True))
    medians = {name: statistics.median(rates) for name, rates in document["rates"].items()}
    document["comparisons"] = comparisons(medians, document.get("straggler", {}))
    _print(document)
    if command.out:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(command.out, json.dumps(document, indent=1) + "\n")


def _turn(
    program: Program, workers: tuple[int, ...], peers: list[str], document: dict[str, Any]
) -> Iterator[tuple[str, Rounds]]:
    """Measure all cases once, and yield their names and rounds. Other numbers of the last turn go to the document."""
    yield from program.call(f"{WORKER_SIDE}:bare").items()
    whole = program.call(f"{WORKER_SIDE}:whole")
    document["microseconds"] = whole["microseconds"]
    yield from whole["cases"].items()
    for count in workers:
        groups = count if count > 1 else 1
        start = time.perf_counter()
        with Pool(PoolConfig(f"{WORKER_SIDE}:Pausing", program.options, count, 1, groups, program.python)) as pool:
            pool.reset([program.task] * count, list(range(count)))
            document.setdefault("seconds_to_start", {})[f"{count}"] = time.perf_counter() - start
            yield f"bridge {count}", [_together(pool, program) for _ in range(program.rounds)]
            if groups > 1:
                yield f"bridge {count}, halves", [_ready(pool, program)[0] for _ in range(program.rounds)]
                document.setdefault("straggler", {})[f"{count}"] = _straggler(pool, program)
        for peer in peers:
            yield f"{peer} {count}", program.call(f"{PEER_SIDE}:peer", peer=peer, environments=count)


def _begin(pool: Pool, program: Program, **changes: Any) -> np.ndarray:
    """Reset a pool for a round, and return the actions, int32 [steps, environments]. The last task is changed."""
    count = pool.config.total
    pool.reset([program.task] * (count - 1) + [{**program.task, **changes}], list(range(count)))
    return np.array([moves(program.steps, seed) for seed in range(count)], np.int32).T


def _together(pool: Pool, program: Program) -> list[float]:
    """Play a round in which all environments step together. Return its rate and the final distance of the first."""
    actions = _begin(pool, program)
    start = time.perf_counter()
    for row in actions:
        pool.send(row)
        batch = pool.receive()
    return [actions.size / (time.perf_counter() - start), float(batch.metrics[0, DISTANCE])]


def _ready(pool: Pool, program: Program, in_turn: bool = False, **changes: Any) -> tuple[list[float], float]:
    """Play a round in which each environment steps as soon as it is ready, or `in_turn`.

    Returns:
        Rate and final distance of the first environment, and the seconds that it took for the round.
    """
    actions = _begin(pool, program, **changes)
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


def _straggler(pool: Pool, program: Program) -> dict[str, float]:
    """Return the milliseconds per step of the first environment while the last one pauses in every 20th step."""
    cases: dict[str, Any] = {"no pauses": {}, "ready": {"pause": PAUSE}, "in turn": {"pause": PAUSE, "in_turn": True}}
    steps = min(program.steps, 400)
    short = dataclasses.replace(program, steps=steps)
    return {name: 1000 * _ready(pool, short, **changes)[1] / steps for name, changes in cases.items()}


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
    found = [(f"{a} : {b}", rates[a] / rates[b], target) for a, b, target in pairs if a in rates and b in rates]
    found += [(f"{n} workers, beside a straggler", x["no pauses"] / x["ready"], 0.8) for n, x in straggler.items()]
    return [{"name": name, "ratio": x, "target": target, "reached": x >= target} for name, x, target in found]


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
