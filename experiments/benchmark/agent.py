"""Latency of `Agent.step` in one environment, as on a robot, and time to the first action.

The floor of a step is reading every key and value once. A separate process measures the time from `load_policy` to the
first action, including compilation with an empty compilation cache.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relic_jax import export
from relic_jax.config import PolicyConfig, TrainConfig, TransformerConfig
from relic_jax.envs.registry import make
from relic_jax.experiments.benchmark.measure import Machine, in_subprocess
from relic_jax.experiments.benchmark.models import act_bytes
from relic_jax.experiments.presets import SMALL, TINY
from relic_jax.loading import LoadedPolicy, load_policy
from relic_jax.models.policy import Policy
from relic_jax.spaces import spaces_of

CONTEXTS = (1024, 8192, 65_536)
STEPS = 500


def cases(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yield cases of the tiny and the small model with three context capacities."""
    models = {"tiny": TINY, "small": SMALL}
    for name, model in models.items():
        for context in CONTEXTS:
            yield latency(machine, name, model, context)
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            loaded, to = random_policy(model), Path(folder)
            about = export.describe(loaded, loaded.params, "safetensors", "float32", 8192, None)
            export.write_artefact(to, loaded.policy, loaded.params, about, "safetensors", "float32")
            (to / "config.json").write_text(json.dumps(about), encoding="utf-8", newline="\n")
            for times in in_subprocess("relic_jax.experiments.benchmark.agent", folder):
                yield {"name": f"agent/{name}/first-action/context8192", **times}


def random_policy(model: TransformerConfig) -> LoadedPolicy:
    """Return an untrained policy for Darkroom. Times do not depend on the parameters."""
    config = TrainConfig(policy=PolicyConfig(transformer=model))
    spaces = spaces_of(make(config.env))
    policy = Policy(config.policy, spaces)
    params = jax.jit(policy.init)(jax.random.key(0))
    return LoadedPolicy(policy, params, config, spaces, training={}, evaluation=None, path=Path())


def latency(machine: Machine, name: str, model: TransformerConfig, context: int) -> dict[str, Any]:
    """Measure the time of a step, including the overhead around the model, after 20 warm-up steps."""
    agent, times = random_policy(model).agent(capacity=context), []
    observation = np.zeros(2, np.float32)
    for index in range(STEPS + 20):
        start = time.perf_counter()
        agent.step(observation, 0.0, False, index % 100 == 99)
        times.append(time.perf_counter() - start)
    median, p99 = (float(np.percentile(times[20:], q)) for q in (50, 99))
    needed = act_bytes(dataclasses.replace(model, cache="float32"), 1, context)
    return {
        "name": f"agent/{name}/context{context}",
        "rate": 1 / median,
        "unit": "steps/s",
        "milliseconds": 1e3 * median,
        "p99_milliseconds": 1e3 * p99,
        "floor_fraction": needed / median / machine.copy_bandwidth,
        "floor": f"{needed / 1e6:.1f} MB per step at the measured copy bandwidth",
    }


def main() -> None:
    """Load the policy in the folder argv[1], act once and print the durations in seconds as JSON."""
    start = time.perf_counter()
    loaded = load_policy(sys.argv[1])
    opened = time.perf_counter()
    loaded.agent().step(np.zeros(2, np.float32))
    acted = time.perf_counter()
    age = time.time() - _STARTED  # includes the start of the interpreter and all imports
    print(json.dumps({"load_seconds": opened - start, "first_action_seconds": acted - start, "process_seconds": age}))


def _process_start() -> float:
    """Return the start time of this process on the clock of `time.time`."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])
    boot = next(
        line for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines() if line.startswith("btime")
    )
    return float(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


_STARTED = _process_start() if Path("/proc/self/stat").exists() else time.time()

if __name__ == "__main__":
    main()
