"""A run's folder: it is created for a new run, and opened to go on with one."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from relic_jax import checkpoint, trust
from relic_jax.config import ConfigError, TrainConfig, differences, from_json, to_json, value_of
from relic_jax.files import write_atomically
from relic_jax.provenance import own_commit
from relic_jax.runtime import read_json


def create_folder(folder: Path, config: TrainConfig) -> None:
    """Makes a new run folder. Raises ConfigError where one of that name exists or where nothing can be written."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"name is {folder.name!r}: '{folder}' is already there; allowed: another --name, "
                f"or go on with it: relic-jax train --resume {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "origin.json", json.dumps(origin() | {"owner": trust.sign(config)}, indent=2) + "\n")
        write_atomically(folder / "config.json", to_json(config))
    except OSError as error:
        reason = f"allowed: a folder that can be written ({error.strerror})"
        raise ConfigError(f"runs is '{folder.parent}', name is {folder.name!r}; {reason}") from None


def run_of(path: Path) -> Path:
    """The run folder that a user means who wants to go on: it itself, or that of one of its checkpoints."""
    run = path.parent.parent
    return run if checkpoint.is_checkpoint(path) and (run / "config.json").is_file() else path


def read_config(folder: Path) -> TrainConfig:
    """The config of an existing run. Raises ConfigError where there is none."""
    try:
        return from_json((folder / "config.json").read_bytes().decode())
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"resume is '{folder}'; allowed: a run folder (it has no readable config.json)") from None
    except ConfigError as error:
        raise ConfigError(f"resume is '{folder}'; its config.json does not fit: {error}") from None


def open_folder(path: Path, wanted: TrainConfig) -> TrainConfig:
    """The config of an existing run, for resuming. path: it, or one of its checkpoints. wanted: what is asked for.

    Raises ConfigError where there is no run, or one of another config (it names the first field that differs), or where
    the checkpoint to go on from, the newest unless `path` is one, is damaged or not its own.
    """
    folder = run_of(path)
    config = read_config(folder)
    if wanted.devices is None:
        wanted = replace(wanted, devices=config.devices)
    if fields := differences(config, wanted):
        was, asked = (value_of(c, fields[0]) for c in (config, wanted))
        raise ConfigError(f"{fields[0]} is {asked!r}; allowed: {was!r}, which '{folder}' was started with")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"resume is '{folder}'; allowed: a folder that can be written")
    if checkpoint.complete_steps(folder / "checkpoints"):
        newest = checkpoint.find(path)
        checkpoint.verify(newest)
        if fields := differences(config, checkpoint.load_meta(newest)[0]):
            allowed = f"one of this run ({fields[0]} differs from its config.json)"
            raise ConfigError(f"checkpoint is '{newest}'; allowed: {allowed}")
    return config


def is_own(folder: Path, config: TrainConfig) -> bool:
    """Whether this user started or went on with the run in `folder`, with this config's environment and workers."""
    try:
        origin = read_json(folder / "origin.json")
    except (OSError, ValueError):
        origin = None
    if isinstance(origin, dict) and trust.is_own(config, origin.get("owner")):
        return True
    steps = checkpoint.complete_steps(folder / "checkpoints")
    return bool(steps) and trust.is_own(config, checkpoint.load_owner(folder / "checkpoints" / str(steps[-1])))


def origin() -> dict[str, Any]:
    """Where a result comes from: command, commit (None where relic-jax is no checkout of its own), versions, device."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": own_commit(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def check_writable(file: Path, field: str) -> None:
    """Raises ConfigError where `file` cannot be written; makes the folder that it goes to."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if file.is_dir() else ""
        if not os.access(file.parent, os.W_OK):
            reason = f"'{file.parent}' is read-only"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise ConfigError(f"{field} is '{file}'; allowed: a file that can be written ({reason})")
