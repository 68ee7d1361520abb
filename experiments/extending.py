"""`relic-jax train --resume RUN --extend-to N`: a run goes on to another total of steps."""

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
    """Environment steps of a checkpoint, or of a run's newest one; 0 where there is none."""
    if checkpoint.is_checkpoint(path):
        return int(path.name) if path.name.isdecimal() else 0
    return max(checkpoint.complete_steps(path / "checkpoints"), default=0)


def extended(path: Path, config: TrainConfig, total: int | None) -> TrainConfig:
    """The config of a run that goes on to `total` steps. path: the run, or its checkpoint to go on from.

    config: the run's own, which is the result where total is None. Raises ConfigError where that many were taken.
    """
    if total is None or total == config.total_steps:
        return config
    taken = steps_taken(path)
    if total <= taken:
        raise ConfigError(f"extend-to is {total}; allowed: more than {taken}, the steps that '{path}' has taken")
    return replace(config, total_steps=total)


def record_extension(folder: Path, before: TrainConfig, after: TrainConfig) -> None:
    """Writes the new config, and the extension into origin.json's list; nothing where the total is the same.

    Raises OSError; config.json is as before then. A process that is killed in between leaves an entry of an extension
    that did not begin.
    """
    if after.total_steps == before.total_steps:
        return
    now = origin()
    entry: dict[str, Any] = {"at_step": steps_taken(folder), "from": before.total_steps, "to": after.total_steps}
    found = read_origin(folder)
    extensions = [*found.get("extensions", []), {**entry, "command": now["command"], "commit": now["commit"]}]
    write_atomically(folder / "origin.json", json.dumps({**found, "extensions": extensions}, indent=2) + "\n")
    write_atomically(folder / "config.json", to_json(after))
