"""`relic-jax train --resume RUN --extend-to N`: resuming a run to a larger total of steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from relic_jax import checkpoint
from relic_jax.config import ConfigError, TrainConfig, to_json
from relic_jax.experiments.folders import origin, read_origin
from relic_jax.files import write_atomically


def steps_taken(path: Path) -> int:
    """Return the environment steps of a checkpoint, or of a run's newest one; 0 if there is none."""
    if checkpoint.is_checkpoint(path):
        return int(path.name) if path.name.isdecimal() else 0
    return max(checkpoint.complete_steps(path / "checkpoints"), default=0)


def extended(path: Path, config: TrainConfig, total: int | None) -> TrainConfig:
    """Return the config of a run that is extended to `total` steps; `config` itself if `total` is None.

    Args:
        path: The run, or the checkpoint to resume from.
        config: The run's config.
        total: New total of environment steps.

    Returns:
        The new config.

    Raises:
        ConfigError: The run has already taken that many steps.
    """
    if total is None or total == config.total_steps:
        return config
    taken = steps_taken(path)
    if total <= taken:
        raise ConfigError(f"extend-to is {total}; allowed: more than {taken}, the steps that '{path}' has taken")
    return replace(config, total_steps=total)


def record_extension(folder: Path, before: TrainConfig, after: TrainConfig) -> None:
    """Write the new config, and add the extension to the list in origin.json. Does nothing if the total is equal.

    If the process is killed between the two files, origin.json lists an extension that did not start.

    Raises:
        OSError: A file cannot be written. config.json is then unchanged.
    """
    if after.total_steps == before.total_steps:
        return
    now = origin()
    entry: dict[str, Any] = {"at_step": steps_taken(folder), "from": before.total_steps, "to": after.total_steps}
    found = read_origin(folder)
    extensions = [*found.get("extensions", []), {**entry, "command": now["command"], "commit": now["commit"]}]
    write_atomically(folder / "origin.json", json.dumps({**found, "extensions": extensions}, indent=2) + "\n")
    write_atomically(folder / "config.json", to_json(after))
