"""Overhead of the bridge to worker processes.

    python -m experiments.benchmark bridge

Measures environment steps per second, including the transfer of arrays to the caller, with 8 environments and frames of
128×128×3, in a separate process without jax:

    nothing NxM  an environment that does nothing, N workers × M environments. Peer: gymnasium's AsyncVectorEnv with
                 shared memory (one process per environment) and the same frames. Medians of alternating rounds.
    overlap      a simulator that sleeps for 2 ms per step, as if it waited for a renderer, in 2 workers × 4
                 environments, and a policy that takes 2 ms per half-batch. Peer: two processes that only simulate.

In the ideal case of `overlap` a worker steps its 4 environments one after the other, which takes 8 ms for both halves.
The policy's 4 ms for both halves run at the same time, so 8 environment steps take 8 ms. `floor_fraction` is the
fraction of this ideal. `of_peer` is the ratio to the bare processes, which have the operating system's delays too.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from relic_jax.bridge.pool import Pool, PoolConfig

if TYPE_CHECKING:
    from relic_jax.experiments.benchmark.measure import Machine

ENVIRONMENTS, SIZE = 8, 128
FRAMES = "relic_jax.experiments.benchmark.frames:Frames"


def cases(machine: Machine, seconds: float = 2.0) -> Iterator[dict[str, Any]]:
    """Yield the cases of `measured`, measured in a separate process because gymnasium forks."""
    from relic_jax.experiments.benchmark.measure import in_subprocess

    del machine
    return in_subprocess("relic_jax.experiments.benchmark.bridge", str(seconds))


def measured(seconds: float, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Measure every case.

    Args:
        seconds: Duration of a round.
        rounds: Number of rounds, which alternate between the bridge and its peer.

    Yields:
        JSON-serializable dicts: name; rate, unit; peer, peer_rate, of_peer (the median of the rounds' ratios); floor
        and floor_fraction if there is an ideal; mark (the target) and reached (whether it was reached).
    """
    peer = _peer_rate()
    for workers, groups in ((1, 1), (2, 1), (2, 2)):
        options = PoolConfig(FRAMES, {"size": SIZE}, workers, ENVIRONMENTS // workers, groups)
        with Pool(options) as pool:
            pairs = [(bridge_rate(pool, seconds), peer(seconds)) for _ in range(rounds)]
        name = f"nothing {workers}x{ENVIRONMENTS // workers}" + ("" if groups == 1 else ", halves")
        case = _case(name, pairs, "gymnasium.vector.AsyncVectorEnv")
        yield {**case, "mark": "5000 steps/s, 2× the peer", "reached": case["rate"] >= 5000 and case["of_peer"] >= 2}
    milliseconds, policy = 2.0, 0.002
    with Pool(PoolConfig(FRAMES, {"size": SIZE, "milliseconds": milliseconds}, workers=2, environments=4)) as pool:
        pairs = [(bridge_rate(pool, seconds, policy), bare_rate(seconds, milliseconds, 2)) for _ in range(rounds)]
    case = _case("overlap", pairs, "bare processes that only simulate")
    share = case["rate"] / (2 * 1000 / milliseconds)
    ideal = {"floor": "full overlap", "floor_fraction": share, "mark": "90% of full overlap", "reached": share >= 0.9}
    yield {**case, **ideal}


def _case(name: str, pairs: list[tuple[float, float]], peer: str) -> dict[str, Any]:
    """Return a case. `pairs` holds (our rate, the peer's rate) of each round."""
    ours, theirs = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    rates = {"rate": ours, "unit": "environment steps/s", "peer": peer, "peer_rate": theirs, "of_peer": ratio}
    return {"name": f"bridge {name}", **rates}


BARE = """
import sys, time
from relic_jax.experiments.benchmark.frames import Frames
env, steps = Frames(128, float(sys.argv[2])), 0
start = time.perf_counter()
while time.perf_counter() - start < float(sys.argv[1]):
    env.step(0)
    steps += 1
print(steps / (time.perf_counter() - start))
"""


def bare_rate(seconds: float, milliseconds: float, processes: int) -> float:
    """Return the steps per second of `processes` simulators that run in parallel without a bridge."""
    command = [sys.executable, "-c", BARE, str(seconds), str(milliseconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(processes)]
    return sum(float(process.communicate()[0]) for process in running)


def bridge_rate(pool: Pool, seconds: float, policy_seconds: float = 0.0) -> float:
    """Return environment steps per second with all groups in flight. `policy_seconds` is per group."""
    pool.reset([0] * ENVIRONMENTS, [0] * ENVIRONMENTS)
    groups = range(pool.config.groups)
    actions, steps, checksum = np.zeros(ENVIRONMENTS // len(groups), np.int32), 0, 0
    for group in groups:
        pool.send(actions, group)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for group in groups:
            checksum += int(pool.receive(group).observation["rgb"][-1, -1, -1, -1])
            if policy_seconds:
                time.sleep(policy_seconds)
            pool.send(actions, group)
            steps += len(actions)
    elapsed = time.perf_counter() - start
    for group in groups:
        pool.receive(group)
    if not checksum:
        raise RuntimeError("frames did not arrive")
    return steps / elapsed


def _peer_rate() -> Callable[[float], float]:
    """Return a function that measures gymnasium's steps per second over a number of seconds."""
    import gymnasium

    class Frames(gymnasium.Env):
        """The same frames as `frames.Frames`."""

        observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(5)
        frames = [np.full((SIZE, SIZE, 3), value, np.uint8) for value in range(2)]  # noqa: RUF012
        count = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
            """Return the first frame."""
            return self.frames[0], {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            """Return the other frame."""
            self.count += 1
            return self.frames[self.count & 1], 0.0, False, False, {}

    def measure(seconds: float) -> float:
        vector = gymnasium.vector.AsyncVectorEnv([Frames] * ENVIRONMENTS, shared_memory=True)
        try:
            vector.reset(seed=0)
            actions, steps = np.zeros(ENVIRONMENTS, np.int64), 0
            vector.step(actions)
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                vector.step(actions)
                steps += ENVIRONMENTS
            return steps / (time.perf_counter() - start)
        finally:
            vector.close()

    return measure


if __name__ == "__main__":
    for case in measured(float(sys.argv[1])):
        print(json.dumps(case), flush=True)
