"""`relic-jax import-llamarl`: import a policy of the original PyTorch code, or export one for it (--reverse)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from relic_jax import checkpoint
from relic_jax.config import (
    ConfigError,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    PPOConfig,
    TrainConfig,
    TrialConfig,
    validate,
)
from relic_jax.experiments import folders, run
from relic_jax.experiments.arguments import parse
from relic_jax.files import write_checksums
from relic_jax.interop import files
from relic_jax.interop import policy as llamarl
from relic_jax.interop.policy import Foreign
from relic_jax.loading import load_policy
from relic_jax.models.policy import policy_for
from relic_jax.runtime import parse_json, verify_files
from relic_jax.spaces import image_mask, spaces_of, spaces_to_json

KEPT = "llamarl.safetensors"
"""File in the folder of an imported policy with the tensors that only the original reads, for --reverse."""
DEFAULT_ENV = {"embedded": "house-objnav-large", "raw": "darkroom-dpt"}
"""Default environment of an imported policy, by its encoding of vectors."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Import a policy of the original ReLIC code, or (--reverse) export one for it."""

    source: tyro.conf.Positional[Path]
    """Checkpoint of the original (PyTorch, or safetensors with its names); with --reverse a run or checkpoint
    folder."""
    to: Path
    """Folder to create, for evaluate and play; with --reverse a file: .safetensors, otherwise in PyTorch's format."""
    reverse: bool = False
    """Export a policy for the original code."""
    env: str | None = None
    """Environment of the policy. Default: house-objnav-large, or darkroom-dpt if the policy reads no goal."""
    config: Path | None = None
    """JSON file with the original's transformer_config. Default: the config in the checkpoint, if any."""


def main(arguments: Sequence[str]) -> None:
    """Convert a policy and print its size. Raises ConfigError."""
    command = parse(Command, arguments, "relic-jax import-llamarl")
    if command.reverse:
        for field in ("env", "config"):
            if getattr(command, field) is not None:
                raise ConfigError(f"{field} is '{getattr(command, field)}'; allowed: nothing, with --reverse")
        export_run(command.source, command.to)
    else:
        import_checkpoint(command)


def import_checkpoint(command: Command) -> None:
    """Convert a checkpoint of the original to a folder that `load_policy` reads."""
    if command.to.exists() and (not command.to.is_dir() or any(command.to.iterdir())):
        raise ConfigError(f"to is '{command.to}'; allowed: a new folder (it is already there)")
    arrays, about = files.read(command.source, "checkpoint")
    given = llamarl.transformer_fields(about if command.config is None else read_json(command.config))
    fields = llamarl.full_config(arrays, given)
    config = train_config(llamarl.policy_config(arrays, fields), command.env)
    env = run.make_env(config.env)
    validate(config, horizon=env.horizon, images=any(image_mask(env.observation_spec)))
    policy = policy_for(env, config.policy)
    params, foreign = llamarl.import_policy(arrays, policy, fields)
    steps = _steps(about)
    folders.create_folder(command.to, config)
    counters, spaces = {"env_steps": steps, "seconds": 0.0}, spaces_to_json(spaces_of(env))
    checkpoint.save_params(command.to / "checkpoints", steps, params, config, counters, spaces)
    files.write(command.to / KEPT, foreign.kept, {"dtypes": foreign.dtypes, "config": foreign.config})
    write_checksums(command.to, [KEPT])
    print(f"imported {_count(params):,} parameters, acting in {config.env.name}; tried backwards: every array is equal")
    print(f"wrote {command.to}; next: relic-jax evaluate {command.to}")


def export_run(source: Path, to: Path) -> None:
    """Convert a run or checkpoint folder to a file for the original."""
    folders.check_writable(to, "to")
    trained = load_policy(source)
    kept = next((folder / KEPT for folder in (source, source.parent.parent) if (folder / KEPT).is_file()), None)
    foreign = Foreign.nothing() if kept is None else read_kept(kept)
    arrays = llamarl.export_policy(trained.params, trained.policy, foreign)
    config = foreign.config or llamarl.original_config(trained.config.policy.transformer)
    files.write(to, arrays, {"config": {"transformer_config": config}})
    print(f"wrote {to}: {len(arrays)} arrays, {_count(trained.params):,} parameters")


def read_kept(file: Path) -> Foreign:
    """Return the tensors that an import stored for --reverse. Raises ConfigError if the file cannot be read."""
    verify_files(file.parent, "import", required=False)  # earlier imports kept none
    arrays, about = files.read(file, "kept")
    if not all(isinstance(about.get(name), dict) for name in ("dtypes", "config")):
        raise ConfigError(f"kept is '{file}'; allowed: the file that relic-jax import-llamarl wrote")
    return Foreign(arrays, about["dtypes"], about["config"])


def train_config(policy: PolicyConfig, env: str | None) -> TrainConfig:
    """Return the config of the original's run: Darkroom, or object navigation."""
    vectors = policy.encoder.vectors
    config = TrainConfig(env=EnvConfig(env or DEFAULT_ENV[vectors]), chunk="segment", policy=policy)
    if vectors == "raw":
        return config
    return dataclasses.replace(
        config,
        trial=TrialConfig(environments=20, steps=4096, updates=16),
        ppo=PPOConfig(warmup_steps=100_000, minibatches=20, accumulate=10),
        eval=EvalConfig(episodes=15, tasks=64),
    )


def read_json(file: Path) -> Any:
    """Return the content of a JSON file. Raises ConfigError if it cannot be read."""
    try:
        return parse_json(file.read_bytes().decode())
    except (OSError, ValueError):
        raise ConfigError(f"config is '{file}'; allowed: a JSON file with the original's transformer_config") from None


def _steps(about: dict[str, Any]) -> int:
    """Return the environment steps that a checkpoint of the original was trained for."""
    extra = about.get("extra_state")
    steps = extra.get("step") if isinstance(extra, dict) else None
    return steps if isinstance(steps, int) and steps >= 0 else 0


def _count(params: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
