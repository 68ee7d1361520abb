"""Associative recall without reinforcement learning.

python -m experiments.recall --seeds 0 1 2 --policy.transformer.no-episode-rope --out recall.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from relic_jax.config import EnvConfig, PolicyConfig, TrainConfig, TrialConfig
from relic_jax.envs import registry
from relic_jax.envs.gridobj.env import GridObj
from relic_jax.experiments import arguments, presets
from relic_jax.experiments.folders import origin
from relic_jax.experiments.recall.learn import Learner, RecallConfig, train
from relic_jax.export import export_policy
from relic_jax.files import write_atomically
from relic_jax.loading import LoadedPolicy
from relic_jax.types import Params


def _policy() -> PolicyConfig:
    return presets.get("gridobj-9").config.policy


@dataclasses.dataclass(frozen=True)
class Command:
    """Learn where the kind that an episode asks for was last seen, from trials of the remembering searcher."""

    out: Path | None = None
    """The JSON file to write."""
    save: Path | None = None
    """Folder for the policy of the last seed, an export that `--start-from` of `relic-jax train` reads."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, one run each."""
    env: EnvConfig = dataclasses.field(default_factory=lambda: EnvConfig("gridobj-9"))
    policy: PolicyConfig = dataclasses.field(default_factory=_policy)
    recall: RecallConfig = dataclasses.field(default_factory=RecallConfig)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    command = arguments.parse(Command, sys.argv[1:] if argv is None else argv, "python -m experiments.recall")
    env = registry.make(command.env)
    if not isinstance(env, GridObj):
        raise SystemExit(f"error: env is {command.env.name!r}; allowed: gridobj-9, gridobj-13, gridobj-21")
    command.recall.validate()
    learner = Learner.of(env, command.policy, command.recall)
    rows: list[dict[str, Any]] = []
    for seed in command.seeds:
        start = time.process_time()

        def report(row: dict[str, Any], start: float = start) -> None:
            row["cpu_s"] = time.process_time() - start
            numbers = " ".join(f"{name} {value:.3g}" for name, value in row.items())
            print(numbers, flush=True)

        params, found = train(learner, seed, report)
        rows += found
    if command.save is not None:
        export_policy(_loaded(command, learner, params), command.save, format="safetensors")
    if command.out is not None:
        write_atomically(command.out, json.dumps({**origin(), "rows": rows}, indent=1) + "\n")


def _loaded(command: Command, learner: Learner, params: Params) -> LoadedPolicy:
    """Return the policy as if it had been read from a run."""
    trial = TrialConfig(environments=command.recall.layouts, steps=command.recall.steps, updates=1)
    policy = learner.policy
    config = TrainConfig(env=command.env, policy=policy.config, trial=trial)
    return LoadedPolicy(policy, params, config, policy.spaces, {"run": "recall"}, None, Path("recall"), own=True)


if __name__ == "__main__":
    main()
