"""Run folders: creating one for a new run, opening one to resume its run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from relic_jax import checkpoint, trust
from relic_jax.config import ConfigError, TrainConfig, differences, from_json, to_json, value_of
from relic_jax.files import write_atomically
from relic_jax.locks import is_lock_file, run_lock
from relic_jax.provenance import own_commit
from relic_jax.runtime import read_json

MAX_NAME_BYTES = 200
"""Longest name in bytes. File systems allow 255; names of temporary files are longer than the run's."""

_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def check_name(name: str) -> None:
    """Raise ConfigError if a run's name is not a folder name that every file system allows."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = MAX_NAME_BYTES + 1
    reason = ""
    if not name or name in (".", "..") or set(name) & set("/\\"):
        reason = "it would leave the folder --runs"
    elif not name.isprintable() or name != name.strip():
        reason = "control characters, and blanks at its ends"
    elif size > MAX_NAME_BYTES:
        reason = f"longer than {MAX_NAME_BYTES} bytes of UTF-8"
    elif sys.platform == "win32" and (
        set(name) & set('<>:"|?*') or name.endswith(".") or name.split(".")[0].lower() in _RESERVED
    ):
        reason = "Windows reserves it"
    if reason:
        raise ConfigError(f"name is {name[:MAX_NAME_BYTES]!r}; allowed: the name of a folder ({reason})")


@contextmanager
def new_folder(folder: Path, config: TrainConfig) -> Iterator[None]:
    """Create a run folder and hold its lock.

    Raises:
        ConfigError: The folder exists, another process is creating it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            _refuse_existing(folder)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_lock(folder, "name"))
            _refuse_existing(folder)
            _write_new(folder, config)
        except OSError as error:
            reason = f"allowed: a folder that can be written ({error.strerror})"
            raise ConfigError(f"runs is '{folder.parent}', name is {folder.name!r}; {reason}") from None
        yield


@contextmanager
def resumed_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder that is resumed. Raises ConfigError if another process holds it."""
    with run_lock(folder, "resume"):
        yield


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the lock of the run whose folder or checkpoint `folder` is; do nothing for other folders.

    Raises:
        LockedError: If another process works on the run.
    """
    folder = folder.absolute()
    runs = [path for path in (folder, *folder.parents[:2]) if (path / "config.json").is_file()]
    runs = [path for path in runs if (path / "checkpoints").is_dir()]
    if not runs:
        yield
        return
    with run_lock(runs[0], "run"):
        yield


def create_folder(folder: Path, config: TrainConfig) -> None:
    """Create a run folder. Raises as `new_folder` does."""
    with new_folder(folder, config):
        pass


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(not is_lock_file(path.name) for path in folder.iterdir())):
        raise ConfigError(
            f"name is {folder.name!r}: '{folder}' is already there; allowed: another --name, "
            f"or resume it with: relic-jax train --resume {folder}"
        )


def _write_new(folder: Path, config: TrainConfig) -> None:
    start = origin() | {"owner": trust.sign(config)}
    files = {"origin.json": json.dumps(start, indent=2) + "\n", "config.json": to_json(config)}
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError:
        for name in files:  # so that the name is free again
            with suppress(OSError):
                (folder / name).unlink()
        raise


def run_of(path: Path) -> Path:
    """Return the run folder of a path that is resumed: the path, or the run of a checkpoint."""
    run = path.parent.parent
    return run if checkpoint.is_checkpoint(path) and (run / "config.json").is_file() else path


def read_config(folder: Path) -> TrainConfig:
    """Return the config of a run folder. Raises ConfigError if it cannot be read."""
    try:
        return from_json((folder / "config.json").read_bytes().decode())
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"resume is '{folder}'; allowed: a run folder (it has no readable config.json)") from None
    except ConfigError as error:
        raise ConfigError(f"resume is '{folder}'; its config.json does not fit: {error}") from None


def open_folder(path: Path, wanted: TrainConfig) -> TrainConfig:
    """Return the config of a run that is resumed, after checking its newest checkpoint.

    Args:
        path: The run folder, or the checkpoint to resume from.
        wanted: The config of the command line.

    Returns:
        The run's config.

    Raises:
        ConfigError: There is no run, its config differs from `wanted` (the first such field is named), or the
            checkpoint is damaged or belongs to another run.
    """
    folder = run_of(path)
    config = read_config(folder)
    config = replace(config, devices=wanted.devices or config.devices)  # the result does not depend on them
    wanted = replace(wanted, devices=config.devices)
    if fields := differences(config, wanted):
        was, asked = (value_of(c, fields[0]) for c in (config, wanted))
        raise ConfigError(f"{fields[0]} is {asked!r}; allowed: {was!r}, which '{folder}' was started with")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"resume is '{folder}'; allowed: a folder that can be written")
    if checkpoint.complete_steps(folder / "checkpoints"):
        newest = checkpoint.find(path)
        checkpoint.verify(newest)
        saved = checkpoint.load_meta(newest)[0]
        if _extended(folder, saved.total_steps):
            saved = replace(saved, total_steps=config.total_steps)
        saved = replace(saved, devices=config.devices)
        if fields := differences(config, saved):
            allowed = f"one of this run ({fields[0]} differs from its config.json)"
            raise ConfigError(f"checkpoint is '{newest}'; allowed: {allowed}")
    return config


def is_own(folder: Path, config: TrainConfig) -> bool:
    """Whether this user started or resumed the run in `folder` with this environment and these workers."""
    if trust.is_own(config, read_origin(folder).get("owner")):
        return True
    steps = checkpoint.complete_steps(folder / "checkpoints")
    return bool(steps) and trust.is_own(config, checkpoint.load_owner(folder / "checkpoints" / str(steps[-1])))


def _extended(folder: Path, total_steps: int) -> bool:
    """Whether the run was extended from this total of steps, which its earlier checkpoints then have."""
    extensions = read_origin(folder).get("extensions")
    found = extensions if isinstance(extensions, list) else []
    return any(isinstance(entry, dict) and entry.get("from") == total_steps for entry in found)


def read_origin(folder: Path) -> dict[str, Any]:
    """Return the content of `origin.json`; {} if it cannot be read."""
    try:
        found = read_json(folder / "origin.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def origin() -> dict[str, Any]:
    """Return the origin of a result: command, commit (None outside a checkout of relic-jax), versions and device."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": own_commit(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def check_writable(file: Path, field: str) -> None:
    """Raise ConfigError if `file` cannot be written. Creates its folder."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if file.is_dir() else ""
        if not os.access(file.parent, os.W_OK):
            reason = f"'{file.parent}' is read-only"
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise ConfigError(f"{field} is '{file}'; allowed: a file that can be written ({reason})")
