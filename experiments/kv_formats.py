"""Effect of storing keys and values in fewer bits on a trained policy: on its outputs along a trial and on its curve.

    python -m experiments.kv_formats runs/darkroom-dpt-seed0 --out experiments/results/kv_formats.json

Outputs are compared in one trial on the first held-out task, with the actions of the float32 policy. Each format has
its own curve.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from relic_jax import checkpoint
from relic_jax.config import ConfigError, TrainConfig
from relic_jax.environment.base import Discrete, TrialRecord
from relic_jax.evaluation import Curves, in_context_curves
from relic_jax.experiments.folders import check_writable, origin
from relic_jax.experiments.run import env_of
from relic_jax.files import write_atomically
from relic_jax.models.kv_formats import KVFormat
from relic_jax.models.policy import Policy, policy_for
from relic_jax.types import Params, StepInput


@dataclasses.dataclass(frozen=True)
class Command:
    """Compare cache formats on trained policies."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or checkpoint folders."""
    out: Path
    """The JSON file to write."""


def main() -> None:
    """Entry point."""
    command = tyro.cli(Command, prog="python -m experiments.kv_formats")
    try:
        check_writable(command.out, "out")
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    found = [row for path in command.paths for row in compare(checkpoint.find(path))]
    write_atomically(command.out, json.dumps({**origin(), "rows": found}, indent=1) + "\n")


def compare(path: Path) -> list[dict[str, Any]]:
    """One row per format of one checkpoint; see `measures`."""
    config, _ = checkpoint.load_meta(path)
    env = env_of(config)
    if not isinstance(env.action_space, Discrete):
        raise SystemExit(f"paths: '{path}' is of env {config.env.name!r}; allowed: one of discrete actions")
    policies = {form: policy_for(env, with_format(config, form).policy) for form in get_args(KVFormat)}
    params = checkpoint.load_params(path, jax.eval_shape(policies["float32"].init, jax.random.key(0)))
    curves = {form: in_context_curves(policy, params, env, config.eval) for form, policy in policies.items()}
    inputs = inputs_of(curves["float32"].trial, config)
    exact = log_probabilities(policies["float32"], params, inputs)
    rows = []
    for form, policy in policies.items():
        outputs = measures(exact, log_probabilities(policy, params, inputs))
        row = {"checkpoint": str(path), "format": form, **outputs, **curve_measures(curves[form])}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def with_format(config: TrainConfig, form: str) -> TrainConfig:
    """Return the same policy with keys and values stored as `form`."""
    transformer = dataclasses.replace(config.policy.transformer, cache=form)  # type: ignore[arg-type]
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, transformer=transformer))


def inputs_of(trial: TrialRecord, config: TrainConfig) -> StepInput:
    """Return the inputs of the policy in a trial, [1, T, ...]."""
    first = jnp.asarray(trial.first)
    hidden = jnp.arange(len(first)) == 0 if config.trial.show_last_reward else first
    inputs = StepInput(
        observation=trial.observation,
        previous_action=jnp.where(first, -1, jnp.roll(jnp.asarray(trial.action), 1)),
        previous_reward=jnp.where(hidden, 0.0, jnp.roll(jnp.asarray(trial.reward), 1)),
        first=first,
    )
    return jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)


def log_probabilities(policy: Policy, params: Params, inputs: StepInput) -> np.ndarray:
    """Of every action, [T, actions]."""
    steps = inputs.first.shape[1]
    output, _ = jax.jit(policy.unroll)(params, policy.initial_memory(1, steps), inputs)
    return np.asarray(jax.nn.log_softmax(output.distribution.logits)[0])


def measures(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Largest difference of log-probabilities, mean divergence from `exact` in nats, share of same favourites."""
    return {
        "log_prob_difference": float(np.abs(exact - found).max()),
        "divergence": float((np.exp(exact) * (exact - found)).sum(-1).mean()),
        "same_favourite": float((exact.argmax(-1) == found.argmax(-1)).mean()),
    }


def curve_measures(curves: Curves) -> dict[str, float]:
    """Mean returns."""
    return {"first_episode": float(curves.returns[:, 0].mean()), "later_episodes": float(curves.returns[:, 1:].mean())}


if __name__ == "__main__":
    main()
