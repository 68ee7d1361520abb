"""Finished runs of other studies, which a study takes over instead of training them again (`--reuse`).

A run is determined by its configuration and its seed, so studies that compare with the same baseline can share it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from relic_jax.config import ConfigError, TrainConfig
from relic_jax.experiments import folders
from relic_jax.experiments.sweep.folder import StudyFolder
from relic_jax.experiments.sweep.grid import Member
from relic_jax.files import write_atomically
from relic_jax.locks import is_lock_file

COPY = ".copy"
"""Folder of an unfinished copy. A killed process leaves it, and the next one removes it."""


def reuse_runs(folder: StudyFolder, runs: Sequence[Member]) -> list[tuple[Member, Path]]:
    """Copy finished runs with the same configuration from the studies beside a study's folder.

    Evaluations that another study declares are left out. `origin.json` of a copy names the run in `copied_from`.

    Args:
        folder: The study's folder, whose lock this process holds.
        runs: The runs of the study. Those that have a checkpoint are left as they are.

    Returns:
        The copied runs and where they come from.
    """
    shutil.rmtree(folder.path / COPY, ignore_errors=True)
    missing = [run for run in runs if not (folder.run(run) / "checkpoints").exists()]
    found = _finished(folder.path) if missing else {}
    copied = []
    for run in missing:
        if (source := found.get(run.config)) is not None:
            _copy(source, folder.path / COPY / run.name)
            shutil.rmtree(folder.run(run), ignore_errors=True)  # a run that has not started
            os.replace(folder.path / COPY / run.name, folder.run(run))
            copied.append((run, source))
    shutil.rmtree(folder.path / COPY, ignore_errors=True)
    return copied


def _finished(path: Path) -> dict[TrainConfig, Path]:
    """Return the finished runs in the studies beside a folder, by their configuration."""
    found: dict[TrainConfig, Path] = {}
    for file in sorted(path.parent.glob("*/*/config.json")):
        run = file.parent
        if run.parent == path or not (run / "curve.png").is_file() or not (run / "checkpoints").is_dir():
            continue
        try:
            found.setdefault(folders.read_config(run), run)
        except ConfigError:  # of another version
            continue
    return found


def _copy(source: Path, target: Path) -> None:
    def left_out(_: str, names: list[str]) -> set[str]:
        return {name for name in names if name.startswith(("evaluate-", "attention.")) or is_lock_file(name)}

    shutil.copytree(source, target, ignore=left_out)
    origin = folders.read_origin(target) | {"copied_from": f"{source.parent.name}/{source.name}"}
    write_atomically(target / "origin.json", json.dumps(origin, indent=2) + "\n")
