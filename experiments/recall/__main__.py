"""Associative recall without reinforcement learning: the pretraining of `relic-jax train`, measured by age.

python -m experiments.recall --seeds 0 1 2 --pretrain.lr 2e-3 --out recall.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from relic_jax.config import ConfigError, EnvConfig, PolicyConfig, PretrainConfig, TrainConfig, TrialConfig
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.envs.gridobj.env import GridObj
from relic_jax.experiments import arguments, presets
from relic_jax.experiments.folders import check_writable, origin
from relic_jax.experiments.recall.learn import train
from relic_jax.export import export_policy
from relic_jax.files import write_atomically
from relic_jax.loading import LoadedPolicy
from relic_jax.models.policy import policy_for
from relic_jax.rl.pretraining import Pretraining, check_pretraining
from relic_jax.types import Params
from relic_jax.validation import check_positive, require


def _policy() -> PolicyConfig:
    return presets.get("gridobj-9").config.policy


@dataclasses.dataclass(frozen=True)
class Command:
    """Learn where the target kind of an episode was last seen, from trials of the remembering searcher."""

    out: Path | None = None
    """The JSON file to write."""
    save: Path | None = None
    """Folder for the policy of the last seed, an export that `--start-from` of `relic-jax train` reads."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, one run each."""
    held_out: int = 64
    """Held-out layouts of the evaluation."""
    every: int = 80
    """Optimizer steps between evaluations; a multiple of `pretrain.minibatches` times `pretrain.epochs`."""
    env: EnvConfig = dataclasses.field(default_factory=lambda: EnvConfig("gridobj-9"))
    policy: PolicyConfig = dataclasses.field(default_factory=_policy)
    pretrain: PretrainConfig = dataclasses.field(default_factory=lambda: PretrainConfig(steps=1000, segment=None))


def pretraining_of(command: Command) -> tuple[TrainConfig, Pretraining]:
    """Return the config of a run and its pretraining.

    Raises:
        ConfigError: If the options do not fit.
    """
    config, env = command.pretrain, registry.make(command.env)
    allowed = "gridobj-9, gridobj-13, gridobj-21"
    require(isinstance(env, GridObj), "env", command.env.name, allowed)
    check_positive(command, "", "held_out", "every")
    require(config.steps > 0, "pretrain.steps", config.steps, "more than 0")
    config.validate()
    if command.out is not None:
        check_writable(command.out, "out")
    allowed = f"a multiple of {config.iteration_steps}, which is pretrain.minibatches times pretrain.epochs"
    require(command.every % config.iteration_steps == 0, "every", command.every, allowed)
    policy = dataclasses.replace(command.policy, recall=env.recall_classes)
    trial = TrialConfig(environments=config.trials, steps=config.trial_steps, updates=1)
    run = TrainConfig(env=command.env, policy=policy, trial=trial, pretrain=config)
    check_pretraining(run, env)
    return run, Pretraining(Trials(env), policy_for(env, policy), config)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    command = arguments.parse(Command, sys.argv[1:] if argv is None else argv, "python -m experiments.recall")
    try:
        config, pretraining = pretraining_of(command)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    rows: list[dict[str, Any]] = []
    for seed in command.seeds:
        start = time.process_time()

        def report(row: dict[str, Any], start: float = start) -> None:
            row["cpu_s"] = time.process_time() - start
            numbers = " ".join(f"{name} {value:.3g}" for name, value in row.items())
            print(numbers, flush=True)

        params, found = train(pretraining, seed, command.held_out, command.every, report)
        rows += found
    if command.save is not None:
        export_policy(_loaded(config, pretraining, params), command.save, format="safetensors")
    if command.out is not None:
        write_atomically(command.out, json.dumps({**origin(), "rows": rows}, indent=1) + "\n")


def _loaded(config: TrainConfig, pretraining: Pretraining, params: Params) -> LoadedPolicy:
    """Return the policy as if it had been read from a run."""
    policy = pretraining.policy
    training, path = {"run": "recall"}, Path("recall")
    return LoadedPolicy(policy, params, config, policy.spaces, training=training, evaluation=None, path=path, own=True)


if __name__ == "__main__":
    main()
